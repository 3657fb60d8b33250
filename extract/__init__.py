"""From recordings to records: decode, crop faces, extract features, write shards. Independent of the trained model."""

import slf_common.interrupt  # noqa: F401  (imported before everything else)
