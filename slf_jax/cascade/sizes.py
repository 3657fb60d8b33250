"""The stages of the cascade, in order, and their image sizes. Imports no JAX, so that slf_jax.report starts fast."""

from __future__ import annotations

THUMBNAIL_SIZE = 8
STAGES = ("base", "upsampler")
SIZES = {"base": (THUMBNAIL_SIZE, 32), "upsampler": (32, 128)}  # sides of the low-resolution image and of the output
