"""Turns a network into a denoiser: all other code only uses `denoise(x, sigma, cond)`, an estimate of x0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# (x [B, H, W, C], sigma [B], cond) -> estimate of the clean data [B, H, W, C]
Denoiser = Callable[[jax.Array, jax.Array, Any], jax.Array]
Standard = tuple[jax.Array, jax.Array]  # mean, and standard deviation [B, 1, 1, 1], by which data are standardised

PRECONDITIONINGS = ("edm", "v", "eps", "x0", "flow")
WEIGHTS = ("edm", "snr")


def expand(values: jax.Array, like: jax.Array) -> jax.Array:
    """[B] to [B, 1, ...], so that it broadcasts against `like`."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def coefficients(kind: str, sigma: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """c_skip, c_out, c_in, c_noise for data of unit standard deviation.

    "edm": Karras et al. 2022, Table 1. "v": Salimans & Ho 2022; for data of unit variance this equals edm with
    the sign of the network flipped. "eps": the network predicts the noise (Ho et al. 2020). "x0": the network predicts
    the clean data itself; better for short training runs, or if the network is narrower than its patches and cannot
    pass the noise through. "flow": the network predicts the velocity `z_1 - x0` of a rectified flow, and `sigma` is its
    time from 1 to 0 (diffusion/flow.py).
    """
    if kind == "flow":
        return jnp.ones_like(sigma), -sigma, jnp.ones_like(sigma), sigma
    std = jnp.sqrt(sigma**2 + 1)
    # The input is x / sqrt(sigma^2 + 1), the x of the variance-preserving process.
    c_in, c_noise = 1 / std, jnp.log(sigma) / 4
    if kind == "edm":
        return 1 / std**2, sigma / std, c_in, c_noise
    if kind == "v":
        return 1 / std**2, -sigma / std, c_in, c_noise
    if kind == "eps":
        return jnp.ones_like(sigma), -sigma, c_in, c_noise
    if kind == "x0":
        return jnp.zeros_like(sigma), jnp.ones_like(sigma), c_in, c_noise
    raise ValueError(f"preconditioning {kind!r} must be one of {', '.join(PRECONDITIONINGS)}")


def make_denoiser(network: Callable, kind: str) -> Denoiser:
    """Wraps `network(c_in * x, c_noise, cond)` in its preconditioning."""

    def denoise(x: jax.Array, sigma: jax.Array, cond: Any) -> jax.Array:
        c_skip, c_out, c_in, c_noise = coefficients(kind, sigma)
        out = network(expand(c_in, x) * x, c_noise, cond)
        return expand(c_skip, x) * x + expand(c_out, x) * out

    return denoise


def restandardised(denoise: Denoiser, own: Standard, to: Standard) -> Denoiser:
    """A denoiser of data standardised in one way as one of the same data standardised in another way.

    Args:
      own, to: how the data of `denoise` are standardised, and x and the estimates of the result. Noise of sigma is
        `std * sigma` in units of the data.
    """
    (_, own_std), (_, std) = own, to

    def converted(x: jax.Array, sigma: jax.Array, cond: Any) -> jax.Array:
        estimate = denoise(convert(x, to, own), sigma * (std / own_std).reshape(-1), cond)
        return convert(estimate, own, to)

    return converted


def convert(x: jax.Array, own: Standard, to: Standard) -> jax.Array:
    """Data standardised in one way, standardised in another way."""
    (own_mean, own_std), (mean, std) = own, to
    return (own_mean + own_std * x - mean) / std


def loss_weight(kind: str, sigma: jax.Array, max_weight: float) -> jax.Array:
    """Weight [B] of the squared error of x0, clipped at `max_weight` to spend less capacity on nearly clean images.

    "edm": (sigma^2 + 1) / sigma^2, with which all noise levels start at the same loss (Karras et al. 2022). "snr":
    1 / sigma^2, the unweighted error of the noise; clipped at gamma this is min-SNR-gamma (Hang et al. 2023) for any
    kind of prediction.
    """
    if kind == "edm":
        return jnp.minimum((sigma**2 + 1) / sigma**2, max_weight)
    if kind == "snr":
        return jnp.minimum(1 / sigma**2, max_weight)
    raise ValueError(f"weight {kind!r} must be one of {', '.join(WEIGHTS)}")


def denoising_loss(
    denoise: Denoiser, clean: jax.Array, noise: jax.Array, sigma: jax.Array, cond: Any, weight: jax.Array
) -> jax.Array:
    """Weighted squared error per item [B]."""
    error = denoise(clean + expand(sigma, clean) * noise, sigma, cond) - clean
    return weight * jnp.square(error).mean(tuple(range(1, clean.ndim)))
