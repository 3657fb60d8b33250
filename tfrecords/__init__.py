"""The dataset format that `extract` (PyTorch) writes and `slf_jax` (JAX) reads: schema, codec, writer and reader."""
