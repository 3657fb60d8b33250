"""How much noise: the levels a sampler visits and the levels training draws."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

SIGMA_RANGE = (2e-3, 200.0)  # bounds log-SNR to about +-12


def karras_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> np.ndarray:
    """Noise levels [steps + 1] from `sigma_max` down to `sigma_min`, then 0 (Karras et al. 2022, Eq. 5)."""
    if steps < 1:
        raise ValueError(f"a sampler takes at least one step, not {steps}")
    ramp = np.linspace(0, 1, steps) if steps > 1 else np.zeros(1)
    sigmas = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    return np.append(sigmas, 0.0).astype(np.float32)


def lognormal(uniform: jax.Array, mean: float, std: float) -> jax.Array:
    """Training noise levels with ln sigma ~ N(mean, std^2), from uniform numbers in (0, 1)."""
    sigma = jnp.exp(mean + std * jax.scipy.special.ndtri(uniform))
    return jnp.clip(sigma, *SIGMA_RANGE)


def stratified(uniform: jax.Array, place: jax.Array, count: int) -> jax.Array:
    """Spreads uniform numbers evenly: item `place` of `count` draws from its own 1/count of (0, 1).

    The batch then covers all noise levels, which lowers the gradient's variance for free.
    """
    return jnp.clip((place + uniform) / count, 1e-6, 1 - 1e-6)
