"""Guidance as combinators of denoisers, its restriction to an interval of sigma, and corrections of the x0 estimate.

Each kind of guidance combines a chain of denoisers: the first is unconditional, each further one knows one more group
of inputs, and each group has a scale; with one group, they are the unconditional and the conditional denoiser. A
worse denoiser that knows all inputs can precede the last one, or take the place of all before it (autoguidance). All
kinds interpolate at scales from 0 to 1, so that 0 ignores the conditions and 1 is plain conditional sampling; they
differ in how they extrapolate.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from slf_jax.diffusion.denoiser import expand

THRESHOLDS = ("static", "dynamic", "none")
TINY = 1e-12  # avoids division by zero

# (x [B, H, W, C], sigma [B]) -> x0 estimate
ConditionedDenoiser = Callable[[jax.Array, jax.Array], jax.Array]
Chain = Sequence[ConditionedDenoiser]
Scales = Sequence[jax.Array | float] | jax.Array  # of each group, a traced scalar or one per item [B]


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


def classifier_free(chain: Chain, scales: Scales) -> ConditionedDenoiser:
    """`D_0 + sum_i scale_i * (D_i - D_(i-1))`, with D_0 unconditional.

    With one group of inputs: `uncond + scale * (cond - uncond)`; 0 ignores the conditions, 1 is plain conditional
    sampling (Ho & Salimans 2022, Eq. 6, with scale = 1 + w). With several, each has its own scale (Brooks et al. 2023,
    Eq. 3); equal scales are those of a single group.
    """
    return lambda x, sigma: _mix(_evaluate(chain, x, sigma), scales)


def rescaled(chain: Chain, scales: Scales, phi: jax.Array | float) -> ConditionedDenoiser:
    """`classifier_free`, scaled towards the standard deviation of the conditional estimate (over each image's values).

    `phi * cfg * std(cond) / std(cfg) + (1 - phi) * cfg` where a scale is above 1 (Lin et al. 2023, Sec. 3.4, here of
    x0).
    """

    def denoise(x: jax.Array, sigma: jax.Array) -> jax.Array:
        estimates = _evaluate(chain, x, sigma)
        guided = _mix(estimates, scales)
        ratio = _std(estimates[-1]) / jnp.maximum(_std(guided), TINY)
        largest = functools.reduce(jnp.maximum, map(jnp.asarray, scales))
        return guided * jnp.where(expand(largest, x) > 1, phi * ratio + 1 - phi, 1.0)

    return denoise


def adaptive_projected(
    chain: Chain, scales: Scales, eta: jax.Array | float, r: jax.Array | float, beta: jax.Array | float
) -> Guided:
    """Adaptive projected guidance: `cond + (scale - 1) * update` at scales above 1 (Sadat et al. 2024, Alg. 1).

    The update is `cond - uncond` with momentum over the evaluations, its norm limited, and its part parallel to the
    conditional estimate, which drives saturation, damped. With several groups of inputs, each has its update.

    Args:
      eta: factor on the parallel part; 1 keeps it.
      r: limit of the update's root mean square, which unlike the paper's norm does not depend on the image size;
        0: none.
      beta: momentum; the paper's are negative.
    """

    def update(average: jax.Array, conditional: jax.Array) -> jax.Array:
        rms = jnp.sqrt(_mean(average**2))
        limited = average * jnp.where((r > 0) & (rms > r), r / jnp.maximum(rms, TINY), 1.0)
        parallel = conditional * (_mean(limited * conditional) / jnp.maximum(_mean(conditional**2), TINY))
        return limited - parallel + eta * parallel

    def evaluate(x: jax.Array, sigma: jax.Array, averages: tuple[jax.Array, ...]) -> Estimate:
        estimates = _evaluate(chain, x, sigma)
        changes = [after - before for before, after in itertools.pairwise(estimates)]
        averages = tuple(change + beta * average for change, average in zip(changes, averages, strict=True))
        x0 = _mix(estimates, [jnp.minimum(scale, 1) for scale in scales])
        for scale, average in zip(scales, averages, strict=True):
            x0 += jnp.maximum(expand(jnp.asarray(scale), x) - 1, 0) * update(average, estimates[-1])
        return Estimate(x0, None, averages)

    return Guided(evaluate, lambda x: (jnp.zeros_like(x),) * len(scales))


def cfg_plus_plus(chain: Chain, scales: Scales, renoise: jax.Array | float) -> Guided:
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
        estimates = _evaluate(chain, x, sigma)
        kept = _mix(estimates, [jnp.minimum(scale, renoise) for scale in scales])
        return Estimate(_mix(estimates, scales), kept, memory)

    return Guided(evaluate, renoises=True)


# By kind (`config.sample.guidance`). The numbers of a kind are the settings whose names begin with its name.
KINDS: dict[str, Callable[..., ConditionedDenoiser | Guided]] = {
    "cfg": classifier_free,
    "rescaled": rescaled,
    "apg": adaptive_projected,
    "cfgpp": cfg_plus_plus,
}


def guide(kind: str, chain: Chain, scales: Scales, numbers: Mapping[str, jax.Array | float]) -> Guided:
    """Guidance of a kind; `scales` and the kind's numbers, as in `{"apg_eta": 0.0, ...}`, are traced."""
    own = {name.removeprefix(f"{kind}_"): value for name, value in numbers.items() if name.startswith(f"{kind}_")}
    return as_guided(KINDS[kind](chain, scales, **own))


def weak_scales(scales: jax.Array) -> jax.Array:
    """Scales [..., G] of a chain that ends with a weak and the own denoiser, from those of its groups of inputs and,
    last, of autoguidance (Karras et al. 2024), both of which know all inputs.

    For one group of inputs, the estimate is then
    `own + (scale - 1) * (own - uncond) + (auto - 1) * (own - weak)`: autoguidance on top of classifier-free guidance.
    """
    return scales.at[..., -1].add(scales[..., -2] - 1)


def unguided(chain: Chain, scales: Scales, some_zero: jax.Array) -> ConditionedDenoiser:
    """Plain conditional sampling, without the groups of inputs whose scale is 0.

    The conditional estimate suffices if all scales are above 0; `some_zero`, the same for all items and scales of a
    sweep, is whether any is not. Images are selected rather than conditions, as selecting those by scale would copy
    keys and values for each scale.
    """

    def denoise(x: jax.Array, sigma: jax.Array) -> jax.Array:
        own = chain[-1](x, sigma)

        def without_some() -> jax.Array:
            used = jnp.stack([jnp.asarray(scale) > 0 for scale in scales])
            estimates = [*_evaluate(chain[:-1], x, sigma), own]
            return jnp.where(expand(used.all(0), x), own, _mix(estimates, used.astype(own.dtype)))

        return jax.lax.cond(some_zero, without_some, lambda: own)

    return denoise


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
        limit = jnp.quantile(jnp.abs(images).reshape(images.shape[0], -1), percentile, axis=-1)
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


def _evaluate(chain: Chain, x: jax.Array, sigma: jax.Array) -> list[jax.Array]:
    return [denoise(x, sigma) for denoise in chain]


def _mix(estimates: Sequence[jax.Array], scales: Scales) -> jax.Array:
    mixed = estimates[0]
    for scale, (before, after) in zip(scales, itertools.pairwise(estimates), strict=True):
        mixed = mixed + expand(jnp.asarray(scale), mixed) * (after - before)
    return mixed


def _mean(images: jax.Array) -> jax.Array:
    """Mean of each image [B, 1, 1, 1]."""
    return images.mean(tuple(range(1, images.ndim)), keepdims=True)


def _std(images: jax.Array) -> jax.Array:
    return jnp.sqrt(_mean((images - _mean(images)) ** 2))
