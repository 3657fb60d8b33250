"""How much noise: the levels a sampler visits and the levels training draws."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

SIGMA_RANGE = (2e-3, 200.0)  # bounds log-SNR to about +-12
DISTRIBUTIONS = ("lognormal", "cosine", "linear")
SPACINGS = ("karras", "training")  # of a sampler's levels: `karras_sigmas`, or `Levels.sigmas`


def karras_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> np.ndarray:
    """Noise levels [steps + 1] from `sigma_max` down to `sigma_min`, then 0 (Karras et al. 2022, Eq. 5)."""
    _check(steps)
    ramp = np.linspace(0, 1, steps) if steps > 1 else np.zeros(1)
    sigmas = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    return np.append(sigmas, 0.0).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Levels:
    """The noise levels of training: a distribution of sigma, by its quantiles.

    "lognormal": ln sigma ~ N(mean, std^2); a larger image wants a larger mean, as its pixels repeat each other
    (Hoogeboom et al. 2023). "cosine" (Nichol & Dhariwal 2021) and "linear" (Ho et al. 2020, continuous as in
    imagen-pytorch): the levels of a variance-preserving process whose time is uniform.
    """

    distribution: str
    mean: float
    std: float

    def __call__(self, share: jax.Array) -> jax.Array:
        """The sigma below which a `share` in [0, 1] of training's levels lies, within `SIGMA_RANGE`."""
        if self.distribution == "lognormal":
            sigma = jnp.exp(self.mean + self.std * jax.scipy.special.ndtri(share))
        elif self.distribution == "cosine":
            sigma = jnp.tan(jnp.pi / 2 * jnp.minimum((share + 0.008) / 1.008, 1 - 1e-6))
        elif self.distribution == "linear":
            sigma = jnp.sqrt(jnp.expm1(1e-4 + 10 * share**2))
        else:
            raise ValueError(f"noise {self.distribution!r} is none of {', '.join(DISTRIBUTIONS)}")
        return jnp.clip(sigma, *SIGMA_RANGE)

    def sigmas(self, steps: int) -> np.ndarray:
        """Noise levels [steps + 1] for a sampler, evenly through the distribution from the top, then 0."""
        _check(steps)
        with jax.ensure_compile_time_eval():
            levels = np.asarray(self(jnp.linspace(1, 0, steps + 1)))
        return np.append(levels[:-1], 0.0).astype(np.float32)


def _check(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"a sampler takes at least one step, not {steps}")


def stratified(uniform: jax.Array, place: jax.Array, count: int) -> jax.Array:
    """Spreads uniform numbers evenly: item `place` of `count` draws from its own 1/count of (0, 1).

    The batch then covers all noise levels, which lowers the gradient's variance for free.
    """
    return jnp.clip((place + uniform) / count, 1e-6, 1 - 1e-6)
