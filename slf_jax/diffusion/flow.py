"""Posterior mean, then flow (PMRF, Ohayon et al. 2025): the estimate of least squared error, moved onto the data.

A rectified flow leads from z_1 = m + noise, where m is the posterior mean of the data x given the conditions, to x, on
straight lines z_s = x + s (z_1 - x). With the time s in place of sigma, `denoise(z_s, s)` = E[x | z_s] is an estimate
of x0 as in diffusion, and the flow dz/ds = E[z_1 - x | z_s] = (z_s - denoise(z_s, s)) / s is the one that the samplers
integrate: guidance, corrections and deterministic samplers apply unchanged. `samplers.ddim` is Euler's method.

The posterior mean comes from the same network, which estimates it at the level `MEAN_LEVEL` from zeros. A guidance
interval is in units of time, so that it guides the posterior mean if it includes `MEAN_LEVEL`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from slf_jax.diffusion.denoiser import Denoiser, Standard, convert, denoising_loss, expand
from slf_jax.diffusion.guidance import ConditionedDenoiser, Guided, as_guided

MEAN_LEVEL = 2.0  # beyond all times of the flow


def posterior_mean(denoise: ConditionedDenoiser | Guided, like: jax.Array) -> jax.Array:
    """The posterior mean of data shaped as `like` [B, H, W, C]; guided, if the denoiser is."""
    guided, nothing = as_guided(denoise), jnp.zeros_like(like)
    return guided.evaluate(nothing, jnp.full(like.shape[0], MEAN_LEVEL), guided.start(nothing)).x0


def restandardised(denoise: Denoiser, own: Standard, to: Standard) -> Denoiser:
    """`denoiser.restandardised` of a flow: it takes the same way at the same times, and its mean still from zeros."""

    def converted(x: jax.Array, time: jax.Array, cond: Any) -> jax.Array:
        own_x = jnp.where(expand(time, x) == MEAN_LEVEL, 0.0, convert(x, to, own))
        return convert(denoise(own_x, time, cond), own, to)

    return converted


def flow_loss(
    denoise: Denoiser, clean: jax.Array, noise: jax.Array, time: jax.Array, cond: Any, weight: jax.Array
) -> jax.Array:
    """Squared error of the posterior mean plus the weighted one of the flow that starts from it, per item [B].

    Args:
      noise: of the source, scaled.
      time: of the flow [B], in (0, 1].
      weight: [B]; 1 / time^2 weighs the error of the velocity equally at all times.
    """
    mean = posterior_mean(lambda x, sigma: denoise(x, sigma, cond), clean)
    error = jnp.square(mean - clean).mean(tuple(range(1, clean.ndim)))
    source = jax.lax.stop_gradient(mean) + noise
    return error + denoising_loss(denoise, clean, source - clean, time, cond, weight)
