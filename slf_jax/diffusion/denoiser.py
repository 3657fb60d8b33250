"""From a network to a denoiser: everything else sees only `denoise(x, sigma, cond)`, an estimate of x0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# (x [B, H, W, C], sigma [B], cond) -> estimate of the clean data [B, H, W, C]
Denoiser = Callable[[jax.Array, jax.Array, Any], jax.Array]

PRECONDITIONINGS = ("edm", "x0")


def expand(values: jax.Array, like: jax.Array) -> jax.Array:
    """[B] to [B, 1, ...], so that it broadcasts against `like`."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def coefficients(kind: str, sigma: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """c_skip, c_out, c_in, c_noise for data of unit standard deviation.

    "edm": Karras et al. 2022, Table 1. "x0": the network predicts the clean data itself; better where training
    is short or the network narrower than its patch, which then need not carry the noise through.
    """
    spread = jnp.sqrt(sigma**2 + 1)
    c_in, c_noise = 1 / spread, jnp.log(sigma) / 4
    if kind == "edm":
        return 1 / spread**2, sigma / spread, c_in, c_noise
    if kind == "x0":
        return jnp.zeros_like(sigma), jnp.ones_like(sigma), c_in, c_noise
    raise ValueError(f"preconditioning {kind!r} is none of {', '.join(PRECONDITIONINGS)}")


def make_denoiser(network: Callable, kind: str) -> Denoiser:
    """Wraps `network(c_in * x, c_noise, cond)` in its preconditioning."""

    def denoise(x: jax.Array, sigma: jax.Array, cond: Any) -> jax.Array:
        c_skip, c_out, c_in, c_noise = coefficients(kind, sigma)
        out = network(expand(c_in, x) * x, c_noise, cond)
        return expand(c_skip, x) * x + expand(c_out, x) * out

    return denoise


def denoising_loss(
    denoise: Denoiser, clean: jax.Array, noise: jax.Array, sigma: jax.Array, cond: Any, max_weight: float
) -> jax.Array:
    """Weighted squared error per item [B].

    The weight is EDM's (sigma^2 + 1) / sigma^2, at which every noise level starts with the same loss, cut at
    `max_weight`, which takes capacity from the nearly clean levels.
    """
    error = denoise(clean + expand(sigma, clean) * noise, sigma, cond) - clean
    weight = jnp.minimum((sigma**2 + 1) / sigma**2, max_weight)
    return weight * jnp.square(error).mean(tuple(range(1, clean.ndim)))
