"""Shared by `tfrecords`, `extract` and `slf_jax`: errors, configs, command lines, files and images."""
