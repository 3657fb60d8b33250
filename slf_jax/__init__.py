"""SLF-JAX: from a voice, an 8x8 thumbnail and a few attributes, in any combination, to a 128x128 face."""

import slf_common.interrupt  # noqa: F401  (imported first, to handle Ctrl-C during the other imports)
