"""From videos to records: decode, crop, extract features, write shards. Knows nothing of the model they train."""

import slf_common.interrupt  # noqa: F401  (first of all)
