"""Images of the cascade: value ranges, thumbnails, up-sampling."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from slf_jax.cascade.sizes import THUMBNAIL_SIZE
from slf_jax.diffusion.guidance import area_average


def to_uint8(images: jax.Array) -> jax.Array:
    """Images in [-1, 1] to uint8."""
    return jnp.round(jnp.clip(images * 127.5 + 127.5, 0, 255)).astype(jnp.uint8)


def to_float(images: jax.Array) -> jax.Array:
    """uint8 images to [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1


def make_thumbnail(faces: jax.Array) -> jax.Array:
    """The 8x8 thumbnail (the paper's "image guide") of faces [B, H, W, 3], the same everywhere in this project."""
    return area_average(faces, THUMBNAIL_SIZE)


def downscale(faces: np.ndarray, size: int = THUMBNAIL_SIZE) -> np.ndarray:
    """Area-averages faces uint8 [B, H, W, 3] to uint8 [B, size, size, 3], for pictures."""
    return np.asarray(to_uint8(area_average(to_float(jnp.asarray(faces)), size)))


def upsample(images: jax.Array, size: int) -> jax.Array:
    """Bicubic up-sampling to [B, size, size, C]."""
    return jax.image.resize(images, (images.shape[0], size, size, images.shape[3]), "cubic")
