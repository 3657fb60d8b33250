"""What the record format, the extraction side and the JAX side share: errors, configs, commands, files."""
