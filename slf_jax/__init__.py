"""SLF-JAX: a voice, an 8x8 thumbnail and a few attributes, in any combination, to a 128x128 face."""
