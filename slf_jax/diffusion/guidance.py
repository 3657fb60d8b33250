"""Guidance as combinators of denoisers, its restriction to an interval of sigma, and corrections of the x0 estimate.

Each kind of guidance combines a conditional and an unconditional denoiser. All interpolate between the two at scales
from 0 to 1, so that 0 ignores the conditions and 1 is plain conditional sampling; they differ in how they extrapolate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from slf_jax.diffusion.denoiser import expand

THRESHOLDS = ("static", "dynamic", "none")
TINY = 1e-12  # avoids division by zero

# (x [B, H, W, C], sigma [B]) -> x0 estimate
ConditionedDenoiser = Callable[[jax.Array, jax.Array], jax.Array]


class Estimate(NamedTuple):
    """What a `Guided` returns for one evaluation.

    Attributes:
      x0: estimate of the clean data [B, H, W, C].
      renoise: another estimate, from which the sampler takes the noise that it keeps; None: from x0.
      memory: what the next evaluation is given.
    """

    x0: jax.Array
    renoise: jax.Array | None = None
    memory: Any = ()


@dataclasses.dataclass(frozen=True)
class Guided:
    """A denoiser with a second estimate, or with memory of earlier evaluations. Samplers take it like a plain one.

    Attributes:
      evaluate: (x, sigma, memory) -> Estimate.
      start: x -> memory of the first evaluation.
      renoises: whether the estimates have `renoise`.
    """

    evaluate: Callable[[jax.Array, jax.Array, Any], Estimate]
    start: Callable[[jax.Array], Any] = lambda x: ()
    renoises: bool = False


def as_guided(denoise: ConditionedDenoiser | Guided) -> Guided:
    """A plain denoiser as one without memory and second estimate; a `Guided` unchanged."""
    if isinstance(denoise, Guided):
        return denoise
    return Guided(lambda x, sigma, memory: Estimate(denoise(x, sigma), None, memory))


def classifier_free(cond: ConditionedDenoiser, uncond: ConditionedDenoiser, scale: jax.Array) -> ConditionedDenoiser:
    """`uncond + scale * (cond - uncond)`; `scale` is a traced scalar or one per item [B].

    0 ignores the conditions, 1 is plain conditional sampling (Ho & Salimans 2022, Eq. 6, with scale = 1 + w).
    """

    def denoise(x: jax.Array, sigma: jax.Array) -> jax.Array:
        unconditional = uncond(x, sigma)
        return _mix(unconditional, cond(x, sigma), scale)

    return denoise


def rescaled(
    cond: ConditionedDenoiser, uncond: ConditionedDenoiser, scale: jax.Array, phi: jax.Array | float
) -> ConditionedDenoiser:
    """`classifier_free`, scaled towards the standard deviation of the conditional estimate (over each image's values).

    `phi * cfg * std(cond) / std(cfg) + (1 - phi) * cfg` at scales above 1 (Lin et al. 2023, Sec. 3.4, here of x0).
    """

    def denoise(x: jax.Array, sigma: jax.Array) -> jax.Array:
        unconditional, conditional = uncond(x, sigma), cond(x, sigma)
        guided = _mix(unconditional, conditional, scale)
        ratio = _std(conditional) / jnp.maximum(_std(guided), TINY)
        return guided * jnp.where(expand(jnp.asarray(scale), x) > 1, phi * ratio + 1 - phi, 1.0)

    return denoise


def adaptive_projected(
    cond: ConditionedDenoiser, uncond: ConditionedDenoiser, scale: jax.Array, eta: jax.Array | float,
    r: jax.Array | float, beta: jax.Array | float,
) -> Guided:  # fmt: skip
    """Adaptive projected guidance: `cond + (scale - 1) * update` at scales above 1 (Sadat et al. 2024, Alg. 1).

    The update is `cond - uncond` with momentum over the evaluations, its norm limited, and its part parallel to the
    conditional estimate, which drives saturation, damped.

    Args:
      eta: factor on the parallel part; 1 keeps it.
      r: limit of the update's root mean square, which unlike the paper's norm does not depend on the image size;
        0: none.
      beta: momentum; the paper's are negative.
    """

    def evaluate(x: jax.Array, sigma: jax.Array, average: jax.Array) -> Estimate:
        unconditional, conditional = uncond(x, sigma), cond(x, sigma)
        average = conditional - unconditional + beta * average
        rms = jnp.sqrt(_mean(average**2))
        update = average * jnp.where((r > 0) & (rms > r), r / jnp.maximum(rms, TINY), 1.0)
        parallel = conditional * (_mean(update * conditional) / jnp.maximum(_mean(conditional**2), TINY))
        strength = expand(jnp.asarray(scale), x)
        extrapolated = conditional + (strength - 1) * (update - parallel + eta * parallel)
        x0 = jnp.where(strength > 1, extrapolated, _mix(unconditional, conditional, scale))
        return Estimate(x0, None, average)

    return Guided(evaluate, jnp.zeros_like)


def cfg_plus_plus(
    cond: ConditionedDenoiser, uncond: ConditionedDenoiser, scale: jax.Array, renoise: jax.Array | float
) -> Guided:
    """CFG++ (Chung et al. 2024, Alg. 2): the x0 estimate is guided, but the noise is not taken from it.

    Args:
      renoise: the noise is taken from the estimate of `classifier_free` at `scale`, but at most at this scale. 0 is the
        unconditional estimate, as published, with scale = lambda; then scale 1 is not conditional sampling. 1 is the
        conditional estimate above scale 1, which keeps it.

    A DDIM step that multiplies sigma by q equals one of `classifier_free` at scale `renoise + (scale - renoise) /
    (1 - q)`: more steps guide more strongly. So renoise = 1 is the published method with lambda = scale - q, except in
    the last step, where q is 0.
    """

    def evaluate(x: jax.Array, sigma: jax.Array, memory: Any) -> Estimate:
        unconditional, conditional = uncond(x, sigma), cond(x, sigma)
        kept = _mix(unconditional, conditional, jnp.minimum(scale, renoise))
        return Estimate(_mix(unconditional, conditional, scale), kept, memory)

    return Guided(evaluate, renoises=True)


# By kind (`config.sample.guidance`). The numbers of a kind are the settings whose names begin with its name.
KINDS: dict[str, Callable[..., ConditionedDenoiser | Guided]] = {
    "cfg": classifier_free,
    "rescaled": rescaled,
    "apg": adaptive_projected,
    "cfgpp": cfg_plus_plus,
}


def guide(
    kind: str, cond: ConditionedDenoiser, uncond: ConditionedDenoiser, scale: jax.Array,
    numbers: Mapping[str, jax.Array | float],
) -> Guided:  # fmt: skip
    """Guidance of a kind; `scale` and the kind's numbers, as in `{"apg_eta": 0.0, ...}`, are traced."""
    own = {name.removeprefix(f"{kind}_"): value for name, value in numbers.items() if name.startswith(f"{kind}_")}
    return as_guided(KINDS[kind](cond, uncond, scale, **own))


def guidance_interval(
    interval: Sequence[float], inside: ConditionedDenoiser | Guided, outside: ConditionedDenoiser
) -> Guided:
    """`inside` where sigma lies in `interval` (low, high], `outside` elsewhere; only one of them is computed.

    Kynkaanniemi et al. 2024. All items must have the same sigma, as in a sampler. Evaluations outside leave the memory
    of `inside` as it is.
    """
    (low, high), guided = interval, as_guided(inside)

    def plain(x: jax.Array, sigma: jax.Array, memory: Any) -> Estimate:
        x0 = outside(x, sigma)
        return Estimate(x0, x0 if guided.renoises else None, memory)

    def evaluate(x: jax.Array, sigma: jax.Array, memory: Any) -> Estimate:
        return jax.lax.cond((sigma[0] > low) & (sigma[0] <= high), guided.evaluate, plain, x, sigma, memory)

    return dataclasses.replace(guided, evaluate=evaluate)


def with_x0_correction(denoise: ConditionedDenoiser | Guided, correct: Callable[[jax.Array], jax.Array]) -> Guided:
    """Applies `correct` to each x0 estimate, the second ones included."""
    guided = as_guided(denoise)

    def evaluate(x: jax.Array, sigma: jax.Array, memory: Any) -> Estimate:
        x0, renoise, memory = guided.evaluate(x, sigma, memory)
        return Estimate(correct(x0), None if renoise is None else correct(renoise), memory)

    return dataclasses.replace(guided, evaluate=evaluate)


def threshold(images: jax.Array, kind: str, percentile: float) -> jax.Array:
    """Brings x0 estimates [B, H, W, C] back to [-1, 1].

    "static" clips. "dynamic" clips at the `percentile` (a share, in (0, 1]) of each image's absolute values, where that
    is above 1, and divides by it (Saharia et al. 2022). "none" leaves them unchanged.
    """
    if kind == "dynamic":
        limit = jnp.quantile(jnp.abs(images).reshape(len(images), -1), percentile, axis=-1)
        limit = expand(jnp.maximum(limit, 1.0), images)
        return jnp.clip(images, -limit, limit) / limit
    return jnp.clip(images, -1, 1) if kind == "static" else images


def area_average(images: jax.Array, size: int) -> jax.Array:
    """[B, H, W, C] to [B, size, size, C], each pixel the mean of its block; H must be a multiple of `size`."""
    count, height, width, channels = images.shape
    blocks = images.reshape(count, size, height // size, size, width // size, channels)
    return blocks.mean((2, 4))


def match_average(images: jax.Array, thumbnail: jax.Array) -> jax.Array:
    """The closest images with area average `thumbnail` [B, h, w, C] (null-space projection, Wang et al. 2023)."""
    return _shift(images, thumbnail - area_average(images, thumbnail.shape[1]))


def match_average_in_range(images: jax.Array, thumbnail: jax.Array) -> jax.Array:
    """Like `match_average`, but the result stays in [-1, 1]: each block is shifted by a constant and clipped.

    The shift is found by bisection, since the average increases with it.
    """
    images = jnp.clip(images, -1, 1)

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high) / 2
        too_low = area_average(jnp.clip(_shift(images, middle), -1, 1), thumbnail.shape[1]) < thumbnail
        return jnp.where(too_low, middle, low), jnp.where(too_low, high, middle)

    low, high = jax.lax.fori_loop(0, 20, halve, (jnp.full_like(thumbnail, -2), jnp.full_like(thumbnail, 2)))
    return jnp.clip(_shift(images, (low + high) / 2), -1, 1)


def _shift(images: jax.Array, offsets: jax.Array) -> jax.Array:
    """Adds to every pixel the offset [B, h, w, C] of its block."""
    times = images.shape[1] // offsets.shape[1]
    return images + offsets.repeat(times, 1).repeat(times, 2)


def _mix(unconditional: jax.Array, conditional: jax.Array, scale: jax.Array) -> jax.Array:
    return unconditional + expand(jnp.asarray(scale), unconditional) * (conditional - unconditional)


def _mean(images: jax.Array) -> jax.Array:
    """Mean of each image [B, 1, 1, 1]."""
    return images.mean(tuple(range(1, images.ndim)), keepdims=True)


def _std(images: jax.Array) -> jax.Array:
    return jnp.sqrt(_mean((images - _mean(images)) ** 2))
