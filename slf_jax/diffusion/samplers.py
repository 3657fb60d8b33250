"""Samplers: free functions from noise and an array of noise levels to data, each one `lax.scan`.

All integrate the probability flow dx/dsigma = (x - denoise(x, sigma)) / sigma (Karras et al. 2022, Eq. 1).
They take x = sigma_0 * noise and sigmas [steps + 1] that fall to 0.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from slf_jax.diffusion.guidance import Bound


def _scan(step: Callable, x: jax.Array, carry: jax.Array, *levels: jax.Array) -> jax.Array:
    (x, _), _ = jax.lax.scan(lambda state, level: (step(*state, *level), None), (x, carry), levels)
    return x


def heun(denoise: Bound, x: jax.Array, sigmas: jax.Array) -> jax.Array:
    """Second-order Heun (Karras et al. 2022, Alg. 1 without churn): 2 * steps - 1 evaluations."""
    sigmas = jnp.asarray(sigmas)

    def slope(x: jax.Array, sigma: jax.Array) -> jax.Array:
        return (x - denoise(x, jnp.full(x.shape[:1], sigma))) / sigma

    def step(x: jax.Array, unused: jax.Array, sigma: jax.Array, following: jax.Array) -> tuple:
        first = slope(x, sigma)
        trial = x + (following - sigma) * first
        return x + (following - sigma) * (first + slope(trial, following)) / 2, unused

    x = _scan(step, x, jnp.zeros(()), sigmas[:-2], sigmas[1:-1])
    # The last step, to 0, is Euler's: the slope has no value there. It lands on the x0 estimate.
    return denoise(x, jnp.full(x.shape[:1], sigmas[-2]))


def dpmpp_2m(denoise: Bound, x: jax.Array, sigmas: jax.Array) -> jax.Array:
    """DPM-Solver++(2M) (Lu et al. 2022): second order, one evaluation a step."""
    sigmas = jnp.asarray(sigmas)

    def step(x: jax.Array, last: jax.Array, before: jax.Array, sigma: jax.Array, following: jax.Array) -> tuple:
        estimate = denoise(x, jnp.full(x.shape[:1], sigma))
        # Extrapolate x0 over lambda = -ln sigma; the first step has no past, the last one (to 0) wants none.
        h_last, h = jnp.log(before / sigma), jnp.log(sigma / following)
        usable = (before > sigma) & (following > 0)
        slant = jnp.where(usable, h / (2 * jnp.where(usable, h_last, 1.0)), 0.0)
        target = estimate + slant * (estimate - last)
        return target + (following / sigma) * (x - target), estimate

    before = jnp.concatenate([sigmas[:1], sigmas[:-2]])
    return _scan(step, x, jnp.zeros_like(x), before, sigmas[:-1], sigmas[1:])


SAMPLERS: dict[str, Callable[[Bound, jax.Array, jax.Array], jax.Array]] = {"heun": heun, "dpmpp_2m": dpmpp_2m}
