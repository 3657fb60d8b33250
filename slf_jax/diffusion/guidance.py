"""Classifier-free guidance as a combinator of two denoisers, and corrections of the x0 estimate."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from slf_jax.diffusion.denoiser import expand

THRESHOLDS = ("static", "dynamic", "none")

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


def within(interval: Sequence[float], inside: Bound, outside: Bound) -> Bound:
    """`inside` where sigma lies in `interval` (low, high], `outside` elsewhere; only one of them is computed.

    For a guidance interval (Kynkaanniemi et al. 2024). All items have the same sigma, as they have in a sampler.
    """
    low, high = interval

    def denoise(x: jax.Array, sigma: jax.Array) -> jax.Array:
        return jax.lax.cond((sigma[0] > low) & (sigma[0] <= high), inside, outside, x, sigma)

    return denoise


def corrected(denoise: Bound, correct: Callable[[jax.Array], jax.Array]) -> Bound:
    """Applies `correct` to each x0 estimate."""
    return lambda x, sigma: correct(denoise(x, sigma))


def threshold(images: jax.Array, kind: str, quantile: float) -> jax.Array:
    """Brings x0 estimates [B, H, W, C] back to [-1, 1].

    "static" clips. "dynamic" clips at the `quantile` of each image's absolute values, where that is above 1, and
    divides by it (Saharia et al. 2022). "none" leaves them.
    """
    if kind == "dynamic":
        most = jnp.quantile(jnp.abs(images).reshape(len(images), -1), quantile, axis=-1)
        most = expand(jnp.maximum(most, 1.0), images)
        return jnp.clip(images, -most, most) / most
    return jnp.clip(images, -1, 1) if kind == "static" else images


def area_average(images: jax.Array, size: int) -> jax.Array:
    """[B, H, W, C] to [B, size, size, C], each pixel the mean of its square; H a multiple of `size`."""
    count, height, width, channels = images.shape
    blocks = images.reshape(count, size, height // size, size, width // size, channels)
    return blocks.mean((2, 4))


def match_average(images: jax.Array, guide: jax.Array) -> jax.Array:
    """The nearest images whose area average is `guide` [B, h, w, C] (the null-space projection of x0)."""
    return _move(images, guide - area_average(images, guide.shape[1]))


def match_average_in_range(images: jax.Array, guide: jax.Array) -> jax.Array:
    """The same for images in [-1, 1], which stay there: each square is moved by one number and cut.

    That number is found by halving: the average rises with it.
    """
    images = jnp.clip(images, -1, 1)

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high) / 2
        short = area_average(jnp.clip(_move(images, middle), -1, 1), guide.shape[1]) < guide
        return jnp.where(short, middle, low), jnp.where(short, high, middle)

    low, high = jax.lax.fori_loop(0, 20, halve, (jnp.full_like(guide, -2), jnp.full_like(guide, 2)))
    return jnp.clip(_move(images, (low + high) / 2), -1, 1)


def _move(images: jax.Array, squares: jax.Array) -> jax.Array:
    """Adds to every pixel the number [B, h, w, C] of its square."""
    times = images.shape[1] // squares.shape[1]
    return images + squares.repeat(times, 1).repeat(times, 2)
