"""Faces from your own recordings: the only package that uses both `extract` and `slf_jax`."""
