"""SLF-JAX: a voice, an 8x8 thumbnail and a few attributes, in any combination, to a 128x128 face."""

import slf_common.interrupt  # noqa: F401  (first of all)
