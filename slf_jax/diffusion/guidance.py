"""Classifier-free guidance as a combinator of denoisers, and corrections of the x0 estimate."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from slf_jax.diffusion.denoiser import expand

THRESHOLDS = ("static", "dynamic", "none")

# (x [B, H, W, C], sigma [B]) -> x0 estimate
ConditionedDenoiser = Callable[[jax.Array, jax.Array], jax.Array]


def classifier_free(cond: ConditionedDenoiser, uncond: ConditionedDenoiser, scale: jax.Array) -> ConditionedDenoiser:
    """`uncond + scale * (cond - uncond)`; `scale` is a traced scalar or one per item [B].

    0 ignores the conditions, 1 is plain conditional sampling (Ho & Salimans 2022).
    """

    def denoise(x: jax.Array, sigma: jax.Array) -> jax.Array:
        unconditional = uncond(x, sigma)
        return unconditional + expand(jnp.asarray(scale), x) * (cond(x, sigma) - unconditional)

    return denoise


def guidance_interval(
    interval: Sequence[float], inside: ConditionedDenoiser, outside: ConditionedDenoiser
) -> ConditionedDenoiser:
    """`inside` where sigma lies in `interval` (low, high], `outside` elsewhere; only one of them is computed.

    Kynkaanniemi et al. 2024. All items must have the same sigma, as in a sampler.
    """
    low, high = interval

    def denoise(x: jax.Array, sigma: jax.Array) -> jax.Array:
        return jax.lax.cond((sigma[0] > low) & (sigma[0] <= high), inside, outside, x, sigma)

    return denoise


def with_x0_correction(denoise: ConditionedDenoiser, correct: Callable[[jax.Array], jax.Array]) -> ConditionedDenoiser:
    """Applies `correct` to each x0 estimate."""
    return lambda x, sigma: correct(denoise(x, sigma))


def threshold(images: jax.Array, kind: str, percentile: float) -> jax.Array:
    """Brings x0 estimates [B, H, W, C] back to [-1, 1].

    "static" clips. "dynamic" clips at the `percentile` (a share, in (0, 1]) of each image's absolute values, where that
    is above 1, and divides by it (Saharia et al. 2022). "none" leaves them unchanged.
    """
    if kind == "dynamic":
        limit = jnp.quantile(jnp.abs(images).reshape(len(images), -1), percentile, axis=-1)
        limit = expand(jnp.maximum(limit, 1.0), images)
        return jnp.clip(images, -limit, limit) / limit
    return jnp.clip(images, -1, 1) if kind == "static" else images


def area_average(images: jax.Array, size: int) -> jax.Array:
    """[B, H, W, C] to [B, size, size, C], each pixel the mean of its block; H must be a multiple of `size`."""
    count, height, width, channels = images.shape
    blocks = images.reshape(count, size, height // size, size, width // size, channels)
    return blocks.mean((2, 4))


def match_average(images: jax.Array, thumbnail: jax.Array) -> jax.Array:
    """The closest images with area average `thumbnail` [B, h, w, C] (null-space projection, Wang et al. 2023)."""
    return _shift(images, thumbnail - area_average(images, thumbnail.shape[1]))


def match_average_in_range(images: jax.Array, thumbnail: jax.Array) -> jax.Array:
    """Like `match_average`, but the result stays in [-1, 1]: each block is shifted by a constant and clipped.

    The shift is found by bisection, since the average increases with it.
    """
    images = jnp.clip(images, -1, 1)

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high) / 2
        too_low = area_average(jnp.clip(_shift(images, middle), -1, 1), thumbnail.shape[1]) < thumbnail
        return jnp.where(too_low, middle, low), jnp.where(too_low, high, middle)

    low, high = jax.lax.fori_loop(0, 20, halve, (jnp.full_like(thumbnail, -2), jnp.full_like(thumbnail, 2)))
    return jnp.clip(_shift(images, (low + high) / 2), -1, 1)


def _shift(images: jax.Array, offsets: jax.Array) -> jax.Array:
    """Adds to every pixel the offset [B, h, w, C] of its block."""
    times = images.shape[1] // offsets.shape[1]
    return images + offsets.repeat(times, 1).repeat(times, 2)
