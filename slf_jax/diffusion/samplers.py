"""Samplers: free functions from noise and an array of noise levels to data, each one `lax.scan`.

They take x = sigma_0 * noise, sigmas [steps + 1] that decrease to 0, and one key per item for samplers that add
noise: an item's result does not depend on the rest of its batch. All but `ancestral` integrate the probability flow
dx/dsigma = (x - denoise(x, sigma)) / sigma (Karras et al. 2022, Eq. 1).

The denoiser is a plain function or a `guidance.Guided`, whose memory goes from one evaluation to the next. Where it
gives a second estimate to take the noise from (CFG++), a step follows the flow of the second one, and then adds the
difference of the two. For `ddim` this is the step of Chung et al. 2024.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from slf_jax.diffusion.guidance import ConditionedDenoiser, Guided, as_guided
from slf_jax.streams import stream

Denoise = ConditionedDenoiser | Guided
# (denoiser, x [B, H, W, C], sigmas [steps + 1], keys [B]) -> data
Sampler = Callable[[Denoise, jax.Array, jax.Array | np.ndarray, jax.Array], jax.Array]


def _scan(step: Callable, x: jax.Array, carry: Any, *levels: jax.Array) -> tuple[jax.Array, Any]:
    """Runs `step(x, carry, *level) -> (x, carry)` over all levels; returns the last x and carry."""
    state, _ = jax.lax.scan(lambda state, level: (step(*state, *level), None), (x, carry), levels)
    return state


def _evaluate(denoise: Denoise, x: jax.Array, sigma: jax.Array, memory: Any) -> tuple[jax.Array, Any, Any]:
    """The estimate whose noise is kept, what to add to x after the step, and the memory."""
    x0, renoise, memory = as_guided(denoise).evaluate(x, jnp.full(x.shape[:1], sigma), memory)
    return (x0, 0.0, memory) if renoise is None else (renoise, x0 - renoise, memory)


def _start(denoise: Denoise, x: jax.Array) -> Any:
    """The memory of the first evaluation."""
    return as_guided(denoise).start(x)


def _noise_like(x: jax.Array, keys: jax.Array, number: jax.Array | int) -> jax.Array:
    """Unit noise of the shape of x for step `number`."""
    draw = lambda key: jax.random.normal(key, x.shape[1:], x.dtype)  # noqa: E731
    return jax.vmap(draw)(stream(keys, "step", number))


def ancestral(denoise: Denoise, x: jax.Array, sigmas: jax.Array | np.ndarray, keys: jax.Array) -> jax.Array:
    """DDPM's posterior q(x_s | x_t, x0) at each step (Ho et al. 2020, Eq. 6-7), in sigma space."""
    sigmas = jnp.asarray(sigmas)

    def step(x: jax.Array, memory: Any, number: jax.Array, sigma: jax.Array, following: jax.Array) -> tuple:
        estimate, jump, memory = _evaluate(denoise, x, sigma, memory)
        kept = (following / sigma) ** 2
        mean = estimate + kept * (x - estimate)
        return mean + following * jnp.sqrt(1 - kept) * _noise_like(x, keys, number) + jump, memory

    return _scan(step, x, _start(denoise, x), jnp.arange(len(sigmas) - 1), sigmas[:-1], sigmas[1:])[0]


def ddim(denoise: Denoise, x: jax.Array, sigmas: jax.Array | np.ndarray, keys: jax.Array) -> jax.Array:
    """Deterministic DDIM (Song et al. 2021), which in sigma space is Euler's method: first order."""
    sigmas = jnp.asarray(sigmas)

    def step(x: jax.Array, memory: Any, sigma: jax.Array, following: jax.Array) -> tuple:
        estimate, jump, memory = _evaluate(denoise, x, sigma, memory)
        return estimate + following / sigma * (x - estimate) + jump, memory

    return _scan(step, x, _start(denoise, x), sigmas[:-1], sigmas[1:])[0]


def heun(
    denoise: Denoise, x: jax.Array, sigmas: jax.Array | np.ndarray, keys: jax.Array, churn: float = 0.0
) -> jax.Array:
    """Second-order Heun (Karras et al. 2022, Alg. 2): 2 * steps - 1 evaluations.

    `churn` > 0 adds noise before each step (S_churn, at all noise levels, with S_noise 1).
    """
    sigmas = jnp.asarray(sigmas)
    growth = min(churn / (len(sigmas) - 1), 2**0.5 - 1)

    def slope(x: jax.Array, sigma: jax.Array, memory: Any) -> tuple[jax.Array, Any, Any]:
        estimate, jump, memory = _evaluate(denoise, x, sigma, memory)
        return (x - estimate) / sigma, jump, memory

    def add_noise(x: jax.Array, number: jax.Array | int, sigma: jax.Array) -> tuple[jax.Array, jax.Array]:
        if not growth:
            return x, sigma
        raised = sigma * (1 + growth)
        return x + jnp.sqrt(raised**2 - sigma**2) * _noise_like(x, keys, number), raised

    def step(x: jax.Array, memory: Any, number: jax.Array, sigma: jax.Array, following: jax.Array) -> tuple:
        x, sigma = add_noise(x, number, sigma)
        first, jump, memory = slope(x, sigma, memory)
        second, _, memory = slope(x + (following - sigma) * first, following, memory)
        return x + (following - sigma) * (first + second) / 2 + jump, memory

    last = len(sigmas) - 2
    x, memory = _scan(step, x, _start(denoise, x), jnp.arange(last), sigmas[:-2], sigmas[1:-1])
    # The last step is an Euler step, since the slope at sigma 0 is undefined. It returns the x0 estimate.
    estimate, jump, _ = _evaluate(denoise, *add_noise(x, last, sigmas[-2]), memory)
    return estimate + jump


def dpmpp_2m(denoise: Denoise, x: jax.Array, sigmas: jax.Array | np.ndarray, keys: jax.Array) -> jax.Array:
    """DPM-Solver++(2M) (Lu et al. 2022): second order, one evaluation per step."""
    sigmas = jnp.asarray(sigmas)

    def step(x: jax.Array, carry: tuple, before: jax.Array, sigma: jax.Array, following: jax.Array) -> tuple:
        previous, memory = carry
        estimate, jump, memory = _evaluate(denoise, x, sigma, memory)
        # Extrapolates x0 over lambda = -ln sigma; the first step has no history, the last one (to 0) needs none.
        h_before, h = jnp.log(before / sigma), jnp.log(sigma / following)
        usable = (before > sigma) & (following > 0)
        factor = jnp.where(usable, h / (2 * jnp.where(usable, h_before, 1.0)), 0.0)
        target = estimate + factor * (estimate - previous)
        return target + (following / sigma) * (x - target) + jump, (estimate, memory)

    before, carry = jnp.concatenate([sigmas[:1], sigmas[:-2]]), (jnp.zeros_like(x), _start(denoise, x))
    return _scan(step, x, carry, before, sigmas[:-1], sigmas[1:])[0]


SAMPLERS: dict[str, Sampler] = {"ancestral": ancestral, "ddim": ddim, "heun": heun, "dpmpp_2m": dpmpp_2m}
DETERMINISTIC = ("ddim", "heun", "dpmpp_2m")  # heun without churn; a flow has no other ones
