"""Classifier-free guidance as a combinator of two denoisers, and corrections of the x0 estimate."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from slf_jax.diffusion.denoiser import expand

# (x [B, H, W, C], sigma [B]) -> x0 estimate: a denoiser whose conditions are bound
Bound = Callable[[jax.Array, jax.Array], jax.Array]


def classifier_free(conditional: Bound, null: Bound, scale: jax.Array) -> Bound:
    """`null + scale * (conditional - null)`; `scale` is a traced scalar or one per item [B].

    0 ignores the conditions, 1 is plain conditional sampling (Ho & Salimans 2022).
    """

    def denoise(x: jax.Array, sigma: jax.Array) -> jax.Array:
        without = null(x, sigma)
        return without + expand(jnp.asarray(scale), x) * (conditional(x, sigma) - without)

    return denoise


def corrected(denoise: Bound, correct: Callable[[jax.Array], jax.Array]) -> Bound:
    """Applies `correct` to each x0 estimate."""
    return lambda x, sigma: correct(denoise(x, sigma))


def area_average(images: jax.Array, size: int) -> jax.Array:
    """[B, H, W, C] to [B, size, size, C], each pixel the mean of its square; H a multiple of `size`."""
    count, height, width, channels = images.shape
    blocks = images.reshape(count, size, height // size, size, width // size, channels)
    return blocks.mean((2, 4))


def match_average(images: jax.Array, guide: jax.Array) -> jax.Array:
    """The nearest images whose area average is `guide` [B, h, w, C] (the null-space projection of x0)."""
    size = guide.shape[1]
    times = images.shape[1] // size
    missing = guide - area_average(images, size)
    return images + missing.repeat(times, 1).repeat(times, 2)
