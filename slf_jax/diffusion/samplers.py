"""Samplers: free functions from noise and an array of noise levels to data, each one `lax.scan`.

They take x = sigma_0 * noise, sigmas [steps + 1] that decrease to 0, and one key per item for samplers that add
noise: an item's result does not depend on the rest of its batch. All but `ancestral` integrate the probability flow
dx/dsigma = (x - denoise(x, sigma)) / sigma (Karras et al. 2022, Eq. 1).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from slf_jax.diffusion.guidance import ConditionedDenoiser
from slf_jax.streams import stream

# (denoiser, x [B, H, W, C], sigmas [steps + 1], keys [B]) -> data
Sampler = Callable[[ConditionedDenoiser, jax.Array, jax.Array | np.ndarray, jax.Array], jax.Array]


def _scan(step: Callable, x: jax.Array, carry: jax.Array, *levels: jax.Array) -> jax.Array:
    (x, _), _ = jax.lax.scan(lambda state, level: (step(*state, *level), None), (x, carry), levels)
    return x


def _evaluate(denoise: ConditionedDenoiser, x: jax.Array, sigma: jax.Array) -> jax.Array:
    return denoise(x, jnp.full(x.shape[:1], sigma))


def _noise_like(x: jax.Array, keys: jax.Array, number: jax.Array | int) -> jax.Array:
    """Unit noise of the shape of x for step `number`."""
    draw = lambda key: jax.random.normal(key, x.shape[1:], x.dtype)  # noqa: E731
    return jax.vmap(draw)(stream(keys, "step", number))


def ancestral(denoise: ConditionedDenoiser, x: jax.Array, sigmas: jax.Array | np.ndarray, keys: jax.Array) -> jax.Array:
    """DDPM's posterior q(x_s | x_t, x0) at each step (Ho et al. 2020, Eq. 6-7), in sigma space."""
    sigmas = jnp.asarray(sigmas)

    def step(x: jax.Array, unused: jax.Array, number: jax.Array, sigma: jax.Array, following: jax.Array) -> tuple:
        estimate, kept = _evaluate(denoise, x, sigma), (following / sigma) ** 2
        mean = estimate + kept * (x - estimate)
        return mean + following * jnp.sqrt(1 - kept) * _noise_like(x, keys, number), unused

    return _scan(step, x, jnp.zeros(()), jnp.arange(len(sigmas) - 1), sigmas[:-1], sigmas[1:])


def ddim(denoise: ConditionedDenoiser, x: jax.Array, sigmas: jax.Array | np.ndarray, keys: jax.Array) -> jax.Array:
    """Deterministic DDIM (Song et al. 2021), which in sigma space is Euler's method: first order."""
    sigmas = jnp.asarray(sigmas)

    def step(x: jax.Array, unused: jax.Array, sigma: jax.Array, following: jax.Array) -> tuple:
        estimate = _evaluate(denoise, x, sigma)
        return estimate + following / sigma * (x - estimate), unused

    return _scan(step, x, jnp.zeros(()), sigmas[:-1], sigmas[1:])


def heun(
    denoise: ConditionedDenoiser, x: jax.Array, sigmas: jax.Array | np.ndarray, keys: jax.Array, churn: float = 0.0
) -> jax.Array:
    """Second-order Heun (Karras et al. 2022, Alg. 2): 2 * steps - 1 evaluations.

    `churn` > 0 adds noise before each step (S_churn, at all noise levels, with S_noise 1).
    """
    sigmas = jnp.asarray(sigmas)
    growth = min(churn / (len(sigmas) - 1), 2**0.5 - 1)

    def slope(x: jax.Array, sigma: jax.Array) -> jax.Array:
        return (x - _evaluate(denoise, x, sigma)) / sigma

    def add_noise(x: jax.Array, number: jax.Array | int, sigma: jax.Array) -> tuple[jax.Array, jax.Array]:
        if not growth:
            return x, sigma
        raised = sigma * (1 + growth)
        return x + jnp.sqrt(raised**2 - sigma**2) * _noise_like(x, keys, number), raised

    def step(x: jax.Array, unused: jax.Array, number: jax.Array, sigma: jax.Array, following: jax.Array) -> tuple:
        x, sigma = add_noise(x, number, sigma)
        first = slope(x, sigma)
        euler = x + (following - sigma) * first
        return x + (following - sigma) * (first + slope(euler, following)) / 2, unused

    last = len(sigmas) - 2
    x = _scan(step, x, jnp.zeros(()), jnp.arange(last), sigmas[:-2], sigmas[1:-1])
    # The last step is an Euler step, since the slope at sigma 0 is undefined. It returns the x0 estimate.
    return _evaluate(denoise, *add_noise(x, last, sigmas[-2]))


def dpmpp_2m(denoise: ConditionedDenoiser, x: jax.Array, sigmas: jax.Array | np.ndarray, keys: jax.Array) -> jax.Array:
    """DPM-Solver++(2M) (Lu et al. 2022): second order, one evaluation per step."""
    sigmas = jnp.asarray(sigmas)

    def step(x: jax.Array, previous: jax.Array, before: jax.Array, sigma: jax.Array, following: jax.Array) -> tuple:
        estimate = _evaluate(denoise, x, sigma)
        # Extrapolates x0 over lambda = -ln sigma; the first step has no history, the last one (to 0) needs none.
        h_before, h = jnp.log(before / sigma), jnp.log(sigma / following)
        usable = (before > sigma) & (following > 0)
        factor = jnp.where(usable, h / (2 * jnp.where(usable, h_before, 1.0)), 0.0)
        target = estimate + factor * (estimate - previous)
        return target + (following / sigma) * (x - target), estimate

    before = jnp.concatenate([sigmas[:1], sigmas[:-2]])
    return _scan(step, x, jnp.zeros_like(x), before, sigmas[:-1], sigmas[1:])


SAMPLERS: dict[str, Sampler] = {"ancestral": ancestral, "ddim": ddim, "heun": heun, "dpmpp_2m": dpmpp_2m}
