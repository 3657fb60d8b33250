"""Noise levels: those a sampler visits, and the distribution that training draws from."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

SIGMA_RANGE = (2e-3, 200.0)  # bounds log-SNR to about +-12
DISTRIBUTIONS = ("lognormal", "cosine", "linear")
SCHEDULES = ("karras", "training")  # of a sampler: `karras_sigmas`, or `SigmaDistribution.sigmas`


def karras_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> np.ndarray:
    """Noise levels [steps + 1] from `sigma_max` down to `sigma_min`, then 0 (Karras et al. 2022, Eq. 5)."""
    _check(steps)
    ramp = np.linspace(0, 1, steps) if steps > 1 else np.zeros(1)
    sigmas = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    return np.append(sigmas, 0.0).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class SigmaDistribution:
    """The distribution of sigma in training, given by its quantile function.

    "lognormal": ln sigma ~ N(p_mean, p_std^2) (Karras et al. 2022); larger images need a larger mean, since
    neighbouring pixels are redundant (Hoogeboom et al. 2023). "cosine" (Nichol & Dhariwal 2021) and "linear" (Ho et
    al. 2020, continuous as in imagen-pytorch): a variance-preserving process at uniformly distributed times. "uniform":
    the times of a flow (diffusion/flow.py), which only its preconditioning uses.
    """

    kind: str
    p_mean: float
    p_std: float

    def __call__(self, quantile: jax.Array) -> jax.Array:
        """The sigma at a `quantile` in [0, 1] of the distribution, clipped to `SIGMA_RANGE`."""
        if self.kind == "lognormal":
            sigma = jnp.exp(self.p_mean + self.p_std * jax.scipy.special.ndtri(quantile))
        elif self.kind == "cosine":
            sigma = jnp.tan(jnp.pi / 2 * jnp.minimum((quantile + 0.008) / 1.008, 1 - 1e-6))
        elif self.kind == "linear":
            sigma = jnp.sqrt(jnp.expm1(1e-4 + 10 * quantile**2))
        elif self.kind == "uniform":
            sigma = quantile
        else:
            raise ValueError(f"sigma distribution {self.kind!r} must be one of {', '.join(DISTRIBUTIONS)}")
        return jnp.clip(sigma, *SIGMA_RANGE)

    def sigmas(self, steps: int) -> np.ndarray:
        """Noise levels [steps + 1] for a sampler: evenly spaced quantiles from the highest, then 0."""
        _check(steps)
        with jax.ensure_compile_time_eval():
            levels = np.asarray(self(jnp.linspace(1, 0, steps + 1)))
        return np.append(levels[:-1], 0.0).astype(np.float32)


def _check(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"a sampler needs at least one step, not {steps}")


def stratified(uniform: jax.Array, batch_index: jax.Array, count: int) -> jax.Array:
    """Stratifies uniform numbers [B]: item `batch_index` of `count` draws from its own interval of length 1/count.

    The batch then covers all noise levels, which lowers the gradient's variance at no cost.
    """
    return jnp.clip((batch_index + uniform) / count, 1e-6, 1 - 1e-6)
