"""From videos to records: decode, crop, extract features, write shards. Knows nothing of the model they train."""
