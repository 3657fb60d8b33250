"""What a student learns from its teacher: to make guided estimates in one evaluation, and larger steps."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from slf_jax.cascade.settings import SampleSettings
from slf_jax.cascade.sizes import THUMBNAIL_SIZE
from slf_jax.cascade.stage import Branches, Items, Lesson, SweepPoint, Task
from slf_jax.cascade.system import System
from slf_jax.diffusion import guidance
from slf_jax.diffusion.flow import MEAN_LEVEL
from slf_jax.models.conditioning import Cond
from slf_jax.streams import stream

ZERO_SHARE = 0.1  # share of the scales that are 0, which differs from all others outside a guidance interval
STEPPERS = ("ddim", "dpmpp_2m")  # samplers whose steps a student can combine: the others add noise, or must end at 0


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A trained system whose guided sampling a student learns, itself distilled or not.

    Attributes:
      params: by stage.
      settings: how it is sampled: its kind of guidance, interval, noise levels and sampler.
      groups: of inputs with a scale of their own; (): one scale for all inputs.
      max_scale: scales are drawn from 0 to this one.
      substeps: how many of its steps one step of the student replaces.
    """

    system: System
    params: Mapping[str, Any]
    settings: SampleSettings
    groups: tuple[tuple[str, ...], ...]
    max_scale: float
    substeps: int

    @property
    def replaces_steps(self) -> bool:
        """Whether the student learns steps between given noise levels, rather than estimates at any noise level.

        CFG++ takes the noise that a step keeps from another estimate, so it defines steps only.
        """
        distilled = self.system.stages["base"].scales > 0
        return self.substeps > 1 or (self.settings.guidance == "cfgpp" and not distilled)

    def lesson(self, name: str, params: Mapping) -> Lesson:
        """The tasks of a stage, with the teacher's parameters of this stage."""
        return functools.partial(self.task, name, params)

    def task(self, name: str, params: Mapping, items: Items) -> Task:
        """The task of a stage for the items of a batch; `params`: the teacher's of this stage, as an argument so that
        a compiled program need not contain them.

        Scales are uniform, and in half of the items equal for all groups. The noise has the sampler's initial factor,
        which its steps keep.

        With one step for one, the target is the teacher's guided estimate (Meng et al. 2023, Eq. 4), before its
        corrections, at noise levels as in training. Otherwise it is the estimate with which one DDIM step arrives
        where the teacher arrives in several, with its corrections (Salimans & Ho 2022, Alg. 2), at the noise levels of
        the student's sampler. In half of the items of a flow, it is the teacher's posterior mean.
        """
        stage, settings = self.system.stages[name], self.settings
        levels, steps = jnp.asarray(stage.levels(settings)), settings.steps // self.substeps
        all_scales = draw_scales(items.keys, max(1, len(self.groups)), self.max_scale)
        conds = self.system.conditions(name, params, items.matrix, items.mask, self.groups)
        conds = [
            jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(all_scales), *leaf.shape[1:])), cond)
            for cond in conds
        ]

        def item_task(items: Items, scales: jax.Array, conds: Sequence[Cond]) -> Task:
            first = self.substeps * jnp.minimum((items.quantile[0] * steps).astype(int), steps - 1)
            visited = levels[first + jnp.arange(self.substeps + 1)]
            sigma = visited[:1] if self.replaces_steps else stage.sigmas(items.quantile)
            point = SweepPoint(scales[0], (scales == 0).any(), settings.numbers)
            guided = stage.guided(params, Branches(conds), items.lowres, point, settings)
            # The upsampler's own image implies a thumbnail, if there is none.
            thumbnail, known = guidance.area_average(items.faces, THUMBNAIL_SIZE), items.clean.has_image
            corrected = guidance.with_x0_correction(guided, stage.correction(items.clean, settings, thumbnail, known))
            origin = stage.origin(corrected, items.data)
            x = stage.noisy(items.data, origin, items.unit, sigma, settings)
            if self.replaces_steps:
                target = invert_ddim(x, settings.run(corrected, x, visited, items.keys), visited[0], visited[-1])
            else:
                target = guided.evaluate(x, sigma, guided.start(x)).x0
            found = Task(x, sigma, scales, target)
            if not stage.is_flow:
                return found
            mean = Task(jnp.zeros_like(x), jnp.full_like(sigma, MEAN_LEVEL), scales, origin)
            chosen = jax.random.bernoulli(stream(items.keys[0], "mean"))
            return jax.tree.map(functools.partial(jnp.where, chosen), mean, found)

        return jax.lax.stop_gradient(per_item(item_task)(items, all_scales, conds))


def draw_scales(keys: jax.Array, groups: int, most: float) -> jax.Array:
    """Guidance scales [B, groups] from 0 to `most`; half of the items have one for all groups."""
    numbers = jnp.arange(groups)
    uniform = jax.vmap(jax.vmap(jax.random.uniform))
    drawn = most * uniform(stream(keys[:, None], "scale", numbers))
    drawn = jnp.where(uniform(stream(keys[:, None], "scale 0", numbers)) < ZERO_SHARE, 0.0, drawn)
    equal = jax.vmap(jax.random.bernoulli)(stream(keys, "equal scales"))
    return jnp.where(equal[:, None], drawn[:, :1], drawn)


def invert_ddim(x: jax.Array, end: jax.Array, sigma: jax.Array, following: jax.Array) -> jax.Array:
    """The x0 estimate with which a DDIM step takes x at `sigma` to `end` at `following` < `sigma`."""
    ratio = following / sigma
    return (end - ratio * x) / (1 - ratio)


def per_item(function: Callable) -> Callable:
    """`function` of batches, for each item by itself: each may then have its own noise levels."""

    def one(*arguments: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[0], function(*jax.tree.map(lambda leaf: leaf[None], arguments)))

    return jax.vmap(one)


def add_parameters(params: Mapping, initial: Mapping) -> dict[str, Any]:
    """A student's parameters: the teacher's, and the `initial` ones of layers that the teacher has not."""
    return unflatten_dict({**flatten_dict(dict(initial)), **flatten_dict(dict(params))})
