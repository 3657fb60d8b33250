"""The whole cascade: both stages sampled for scales x people."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from slf_common.errors import UserError
from slf_jax import features
from slf_jax.cascade.images import make_thumbnail
from slf_jax.cascade.settings import SampleSettings, check_system, plain
from slf_jax.cascade.sizes import SIZES, STAGES
from slf_jax.cascade.stage import Branches, Noise, Stage, SweepPoint, Weak, normal
from slf_jax.diffusion.guidance import weak_scales
from slf_jax.models.conditioning import Cond, Conditioner
from slf_jax.models.unet import UNet, UNetConfig
from slf_jax.streams import stream

AUTO = "auto"  # in place of inputs, the group of autoguidance
THUMBNAIL = "thumbnail"  # among the inputs of a group


@dataclasses.dataclass(frozen=True)
class System:
    """A cascade: the layout and statistics of its features, the inputs that it uses, and its stages.

    The networks may support more inputs than are used; the others are masked in all records (`mask_unused_inputs`).
    Those of a distilled system take guidance scales up to `max_scale` as input, one for each of the `groups` of inputs,
    or one for all if there are no groups; `max_scale` is 0 for other systems.
    """

    layout: features.Layout
    statistics: Mapping[str, Mapping[str, np.ndarray]]
    inputs: tuple[str, ...]
    stages: Mapping[str, Stage]
    groups: tuple[tuple[str, ...], ...] = ()
    max_scale: float = 0.0

    def check_scales(
        self, scales: Sequence[Sequence[float]], groups: Sequence[Sequence[str]] = (), where: str = ""
    ) -> None:
        """Raises `UserError`, which begins with `where`, for scales or groups that a distilled system does not take.

        Inputs of a group may be masked, and one scale may be given for all groups.
        """
        if not self.max_scale:
            return
        own = tuple(tuple(name for name in group if name in self.inputs) for group in self.groups)
        if groups and tuple(map(tuple, groups)) != own:
            other = ",".join(f"{'+'.join(group)}=..." for group in self.groups)
            give = f"give {other}, or one scale for both" if other else "give one scale for all of them"
            raise UserError(f"{where}this system was distilled for other groups of inputs; {give}")
        if (most := max(itertools.chain(*scales))) > self.max_scale:
            raise UserError(f"{where}this system was distilled for scales up to {self.max_scale:g}, not for {most:g}")

    def without(self, names: Sequence[str]) -> System:
        """The same system with some of its inputs masked. Raises `UserError` for a name that is not one of them."""
        for name in names:
            if name not in self.inputs:
                raise UserError(f"{name!r} is not an input of this system; its inputs are: {', '.join(self.inputs)}")
        return dataclasses.replace(self, inputs=tuple(name for name in self.inputs if name not in names))

    def mask_unused_inputs(self, clips: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Masks the constituents that this system does not use.

        This happens on the host, so that one compiled program works for any choice of inputs.
        """
        supported = self.stages[STAGES[0]].conditioner.inputs
        return features.mask_constituents(clips, [name for name in supported if name not in self.inputs])

    def features(self, clips: Mapping[str, features.Array]) -> tuple[jax.Array, jax.Array]:
        """Matrix [B, 256, 768] and row mask [B, 256] of a batch of records from `mask_unused_inputs`."""
        return features.assemble(clips, self.layout, self.statistics)

    def identity_cosine(self, cond: Cond, clips: Mapping[str, Any], mask: jax.Array) -> jax.Array | None:
        """Cosine [B] of predicted and own embeddings of the faces; NaN where they, or all inputs, are unknown.

        `mask`: [B, 256], the rows from which `cond` was encoded. None without an identity head.
        """
        if cond.identity is None:
            return None
        identity = features.face_identity(clips, self.statistics)
        rows = features.rows_of(self.stages[STAGES[0]].conditioner.inputs, self.layout)
        known = jnp.isfinite(identity).all(-1) & mask[:, rows].any(-1)
        cosine = (features.unit_length(cond.identity) * jnp.where(known[:, None], identity, 0)).sum(-1)
        return jnp.where(known, cosine, jnp.nan)

    def predict_identity(self, params: Mapping, clips: Mapping[str, np.ndarray]) -> jax.Array:
        """The embeddings of the faces [B, E] that the base stage's identity head predicts, as `features.face_identity`.

        `params`: of the base stage; `clips`: records from `mask_unused_inputs`. Needs `config.model.identity_width`.
        """
        cond = self.stages["base"].condition(params, *self.features(clips))
        return features.unit_length(cast(jax.Array, cond.identity))

    def sample(
        self, params: Mapping[str, Mapping], clips: Mapping[str, jax.Array], low: jax.Array, has_thumbnail: jax.Array,
        noise: Mapping[str, Noise], scales: jax.Array, settings: SampleSettings, stages: Sequence[str] = STAGES,
        numbers: Mapping[str, jax.Array | float] | None = None, groups: Sequence[Sequence[str]] = (),
        weak: tuple[System, Mapping[str, Mapping]] | None = None,
    ) -> jax.Array:  # fmt: skip
        """Samples S scales x B people through `stages`, one after the other.

        Conditions, noise, keys and values of each person are computed once and shared by all scales. With a guidance
        interval, noise levels outside it cost one evaluation of the network, or all of them where any scale is 0.

        Args:
          params: of each stage.
          clips: raw records from `mask_unused_inputs`, leading axis B.
          low: [B, side, side, 3] in [-1, 1], the input of the first stage: the thumbnail, or a 32x32 face for the
            upsampler.
          has_thumbnail: [B]; where it is 0, the base stage starts from noise alone.
          noise: of each stage, from `person_noise`.
          scales: [S, 2], of base and upsampler, or [S, 2, G] for G groups; traced: a new scale does not recompile.
          numbers: values to use for some of `settings.NUMBERS`, traced too; each a scalar, or [S], one for each scale.
          groups: the constituents of each group with its own scale, in the order in which guidance adds them; (): all
            inputs are one group. Groups must have all inputs that `clips` do not mask. The thumbnail is always given,
            unless `THUMBNAIL` is in a group; the upsampler has its low-resolution image all the same. With `weak`, the
            last of several groups is `(AUTO,)`.
          weak: a worse system on the same diffused data, and its parameters. Without groups, it takes the place of the
            unconditional branch (autoguidance, Karras et al. 2024); with groups, its own scale is added to theirs
            (`guidance.weak_scales`).

        Returns: images [S, B, side, side, 3] in [-1, 1], of the last stage.
        """
        matrix, mask = self.features(clips)
        of_inputs = [group for group in groups if AUTO not in group]
        conds = {name: self.conditions(name, params[name], matrix, mask, of_inputs) for name in stages}
        scales, worse = scales.reshape(*scales.shape[:2], -1), dict.fromkeys(stages)
        known, thumbnail_scales, scales = _thumbnail_scales(scales, of_inputs)
        if weak:
            worse = {name: weak[0].as_weak(name, weak[1][name], clips) for name in stages}
            if groups:
                scales = weak_scales(scales)
            else:
                conds = {name: each[-1:] for name, each in conds.items()}
        thumbnail, some_zero = make_thumbnail(low), (scales <= 0).any((0, 2))
        branches = {name: Branches(conds[name], worse[name], known if name == "base" else ()) for name in stages}

        def sample_at(pair: jax.Array, thumbnail_scale: jax.Array, numbers: Mapping) -> jax.Array:
            image, has_image = low, has_thumbnail
            for name in stages:
                stage, i = self.stages[name], STAGES.index(name)
                lowres = stage.lowres_cond(image, has_image, jnp.zeros(low.shape[0]))
                point = SweepPoint(pair[i], some_zero[i], numbers, thumbnail_scale)
                image = stage.sample(
                    params[name], branches[name], lowres, point, noise[name], settings, thumbnail, has_thumbnail
                )
                has_image = jnp.ones(low.shape[0])
            return image

        values = settings.numbers | dict(numbers or {})
        axes = {name: 0 if jnp.ndim(value) else None for name, value in values.items()}
        return jax.vmap(sample_at, (0, 0, axes))(scales, thumbnail_scales, values)

    def as_weak(self, name: str, params: Mapping, clips: Mapping[str, jax.Array]) -> Weak:
        """A stage to guide another system with; `clips`: the other system's, of which only this one's inputs count."""
        matrix, mask = self.features(clips)
        known = np.isin(np.arange(features.MATRIX_ROWS), features.rows_of(self.inputs, self.layout))
        return Weak(self.stages[name], params, self.stages[name].condition(params, matrix, mask & known))

    def conditions(
        self, name: str, params: Mapping, matrix: jax.Array, mask: jax.Array, groups: Sequence[Sequence[str]]
    ) -> list[Cond]:
        """The conditions of the unconditional branch, shared by all people, then with one more group of inputs each.

        `params`: of the stage. Of a distilled system, only those with all groups.
        """
        stage = self.stages[name]
        if stage.scales:
            return [stage.condition(params, matrix, mask)]
        conds = [stage.condition(params, jnp.zeros_like(matrix[:1]), jnp.zeros_like(mask[:1]))]
        for count in range(1, len(groups)):
            names = [each for group in groups[:count] for each in group if each != THUMBNAIL]
            known = np.isin(np.arange(features.MATRIX_ROWS), features.rows_of(names, self.layout))
            conds.append(stage.condition(params, matrix, mask & known))
        return [*conds, stage.condition(params, matrix, mask)]


def _thumbnail_scales(scales: jax.Array, groups: Sequence[Sequence[str]]) -> tuple[list[bool], jax.Array, jax.Array]:
    """In which conditions of the chain of `groups` the thumbnail is known, its scale [S], and the scales [S, 2, G].

    A group of the thumbnail alone adds nothing to the upsampler's chain: there its scale becomes 1.
    """
    place = next((i for i, group in enumerate(groups) if THUMBNAIL in group), None)
    if place is None:
        return [], jnp.ones(scales.shape[0]), scales
    known, own = [count > place for count in range(len(groups) + 1)], scales[:, STAGES.index("base"), place]
    if len(groups[place]) == 1:
        scales = scales.at[:, STAGES.index("upsampler"), place].set(1.0)
    return known, own, scales


def person_noise(
    seed: int | jax.Array, people: jax.Array, draws: jax.Array | int = 0, purpose: str = "sample"
) -> dict[str, Noise]:
    """The noise of each stage, a function of the seed, each person's number [B], the draw and the purpose."""
    keys = stream(stream(jax.random.key(seed), purpose), "person", people)
    keys = stream(keys, "draw", draws)
    noise = {}
    for name in STAGES:
        size, own = SIZES[name][1], stream(keys, name)
        noise[name] = Noise(normal(stream(own, "first"), (size, size, 3)), stream(own, "way"))
    return noise


def build_system(
    config: ml_collections.ConfigDict, layout: features.Layout, statistics: Mapping[str, Mapping[str, np.ndarray]]
) -> System:
    """Builds the system that a config describes. Raises `UserError` for invalid or incompatible settings."""
    check_system(config)
    inputs = tuple(config.data.inputs)
    supported = tuple(config.model.supported_inputs) or inputs
    features.check_inputs((*inputs, *supported), layout)
    dtype = jnp.dtype(_dtype(config.model.dtype))
    groups = tuple(tuple(group.split("+")) for group in config.distill.groups)
    scales = max(1, len(groups)) if config.distill.max_scale else 0
    stages = {}
    for name in STAGES:
        net = UNetConfig(**{key: plain(value) for key, value in config.model[name].items()})
        cond = Conditioner(
            layout, supported, net.cond_width, net.cross_widths, net.head_width, net.dropout, dtype,
            config.model.identity_width,
        )  # fmt: skip
        stages[name] = Stage(name, cond, UNet(net, dtype), **config.diffusion[name].to_dict(), scales=scales)
    return System(layout, statistics, inputs, stages, groups, config.distill.max_scale)


def _dtype(name: str) -> str:
    """Resolves "auto": bfloat16 on accelerators, float32 on CPU, where XLA's bfloat16 is slower."""
    return ("float32" if jax.default_backend() == "cpu" else "bfloat16") if name == "auto" else name
