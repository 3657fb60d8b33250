"""The two stages of the cascade: their losses, and both as one sampler over scales x people.

`base` lifts the 8x8 guide to 32x32, or starts from noise where there is none; `upsampler` lifts that to
128x128. Each diffuses the difference between the face and its up-sampled low-resolution image (or the face
itself), divided by its standard deviation, so that the diffusion core always sees data of unit spread.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from slf_common.errors import UserError
from slf_jax import features
from slf_jax.diffusion import denoiser, guidance, noise, samplers
from slf_jax.models.conditioning import Cond, Conditioner
from slf_jax.models.unet import UNet, UNetConfig
from slf_jax.settings import GUIDE_SIZE, SIZES, STAGES, check_sample, check_system
from slf_jax.streams import stream


def to_uint8(images: jax.Array) -> jax.Array:
    """Images in [-1, 1] to uint8."""
    return jnp.round(jnp.clip(images * 127.5 + 127.5, 0, 255)).astype(jnp.uint8)


def to_float(images: jax.Array) -> jax.Array:
    """uint8 images to [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1


def make_guide(faces: jax.Array) -> jax.Array:
    """The 8x8 guide of faces [B, H, W, 3]: one function for training, sampling and evaluation."""
    return guidance.area_average(faces, GUIDE_SIZE)


def upsample(images: jax.Array, size: int) -> jax.Array:
    """Bicubic up-sampling to [B, size, size, C]."""
    return jax.image.resize(images, (images.shape[0], size, size, images.shape[3]), "cubic")


@flax.struct.dataclass
class Start:
    """What a stage starts from: its up-sampled low-resolution image and the numbers that describe it.

    image: [B, H, W, 3], zeros where there is none. present: [B], 1 where there is one. level: [B], standard
    deviation of the noise added to the low-resolution image.
    """

    image: jax.Array
    present: jax.Array
    level: jax.Array


@flax.struct.dataclass
class Noise:
    """A person's noise in one stage: `first` [B, size, size, 3], and `keys` [B] of what a sampler adds on the way."""

    first: jax.Array
    keys: jax.Array


@dataclasses.dataclass(frozen=True)
class Stage:
    """One U-Net of the cascade with its diffusion settings (`config.diffusion`, documented in configs/base.py)."""

    name: str
    conditioner: Conditioner
    unet: UNet
    preconditioning: str
    noise: str
    noise_mean: float
    noise_std: float
    weight: str
    max_weight: float
    residual: bool
    spread: float
    spread_alone: float
    low_noise: float

    @property
    def levels(self) -> noise.Levels:
        """The noise levels of training."""
        return noise.Levels(self.noise, self.noise_mean, self.noise_std)

    @property
    def low(self) -> int:
        return SIZES[self.name][0]

    @property
    def size(self) -> int:
        return SIZES[self.name][1]

    def init(self, key: jax.Array) -> dict:
        """Random parameters, `{"conditioner": ..., "unet": ...}`."""
        matrix = jnp.zeros((1, features.MATRIX_ROWS, features.MATRIX_WIDTH))
        keys = {part: stream(key, part) for part in ("conditioner", "unet")}
        cond, conditioner = self.conditioner.init_with_output(keys["conditioner"], matrix, matrix[:, :, 0] > 0)
        images = jnp.zeros((1, self.size, self.size, 6))
        unet = self.unet.init(keys["unet"], images, jnp.zeros(1), jnp.zeros((1, 2)), cond)
        return {"conditioner": conditioner["params"], "unet": unet["params"]}

    def condition(self, params: Mapping, matrix: jax.Array, mask: jax.Array, dropout: jax.Array | None = None) -> Cond:
        """Everything the U-Net needs of the conditions; `dropout`: a key in training."""
        variables = {"params": params["conditioner"]}
        return self.conditioner.apply(variables, matrix, mask, dropout is not None, rngs=_rngs(dropout))

    def denoiser(self, params: Mapping, start: Start, dropout: jax.Array | None = None) -> denoiser.Denoiser:
        """`denoise(x, sigma, cond)` on this stage's standardised data."""
        extras = jnp.stack([start.present, start.level], -1)

        def network(x: jax.Array, c_noise: jax.Array, cond: Cond) -> jax.Array:
            images, variables = jnp.concatenate([x, start.image], -1), {"params": params["unet"]}
            return self.unet.apply(variables, images, c_noise, extras, cond, dropout is not None, rngs=_rngs(dropout))

        return denoiser.make_denoiser(network, self.preconditioning)

    def unit(self, present: jax.Array) -> jax.Array:
        """Standard deviation [B, 1, 1, 1] of what is diffused, with and without a low-resolution image."""
        return jnp.where(present > 0, self.spread, self.spread_alone)[:, None, None, None]

    def offset(self, start: Start) -> jax.Array:
        """What is taken off the face before it is standardised."""
        return start.image * float(self.residual)

    def start(self, low: jax.Array, present: jax.Array, level: jax.Array) -> Start:
        """From a low-resolution image [B, low, low, 3], possibly noisy."""
        image = upsample(low, self.size) * present[:, None, None, None]
        return Start(image, present, level)

    def loss(
        self, params: Mapping, faces: jax.Array, matrix: jax.Array, mask: jax.Array, keys: jax.Array,
        place: jax.Array, count: int, *, guide_drop: float, dropout: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:  # fmt: skip
        """Weighted denoising loss [B] and the noise levels [B] it was taken at.

        Args:
          faces: [B, 128, 128, 3] in [-1, 1].
          keys: one per item; everything random about an item comes from its key, by name.
          place, count: of the items in the global batch, over which noise levels are spread evenly.
          guide_drop: share of items whose guide is withheld (base only).
        """
        face, low = guidance.area_average(faces, self.size), guidance.area_average(faces, self.low)
        present = jnp.ones(len(faces))
        if self.name == "base":
            present = (_uniform(stream(keys, "guide")) >= guide_drop).astype(jnp.float32)
        level = _uniform(stream(keys, "low level")) * self.low_noise
        noisy = low + level[:, None, None, None] * _normal(stream(keys, "low noise"), low.shape[1:])
        # The network sees the noisy image, but what it has to find is the difference from the clean one.
        clean, start = self.start(low, present, level), self.start(noisy, present, level)
        data = (face - self.offset(clean)) / self.unit(present)
        sigma = self.levels(noise.stratified(_uniform(stream(keys, "sigma")), place, count))
        drops = {part: None if dropout is None else stream(dropout, part) for part in ("conditioner", "unet")}
        cond = self.condition(params, matrix, mask, drops["conditioner"])
        denoise = self.denoiser(params, start, drops["unet"])
        weight = denoiser.loss_weight(self.weight, sigma, self.max_weight)
        unit = _normal(stream(keys, "noise"), data.shape[1:])
        return denoiser.denoising_loss(denoise, data, unit, sigma, cond, weight), sigma

    def sample(
        self, params: Mapping, cond: Cond, null: Cond, start: Start, scale: jax.Array, noise: Noise,
        settings: SampleSettings, guide: jax.Array, guided: jax.Array, some_zero: jax.Array,
    ) -> jax.Array:  # fmt: skip
        """Images [B, size, size, 3] at one guidance scale.

        guide: [B, 8, 8, 3]. guided: [B], 1 where there is one. some_zero: whether any scale of the sweep is 0; unlike
        `scale` the same for all of them.
        """
        unit, offset = self.unit(start.present), self.offset(start)

        def consistent(image: jax.Array, match: Callable) -> jax.Array:
            if not settings.guide_consistency:
                return image
            return jnp.where(guided[:, None, None, None] > 0, match(image, guide), image)

        def correct(data: jax.Array) -> jax.Array:
            image = guidance.threshold(offset + unit * data, settings.threshold, settings.quantile)
            return (consistent(image, guidance.match_average) - offset) / unit

        denoise = self._guided(params, cond, null, start, scale, some_zero, settings.interval)
        sigmas = settings.sigmas(self.levels)
        x = sigmas[0] * settings.temperature * noise.first
        data = settings.run(guidance.corrected(denoise, correct), x, sigmas, noise.keys)
        return consistent(jnp.clip(offset + unit * data, -1, 1), guidance.match_average_in_range)

    def _guided(
        self, params: Mapping, cond: Cond, null: Cond, start: Start, scale: jax.Array, some_zero: jax.Array,
        interval: tuple[float, ...],
    ) -> guidance.Bound:  # fmt: skip
        """The denoiser with its conditions, guided within the interval of sigma, or everywhere if that is empty."""
        denoise = self.denoiser(params, start)
        bind = lambda cond: lambda x, sigma: denoise(x, sigma, cond)  # noqa: E731
        both = guidance.classifier_free(bind(cond), bind(null), scale)
        if not interval:
            return both

        def outside(x: jax.Array, sigma: jax.Array) -> jax.Array:
            # The conditional branch is enough, but at scale 0 conditions must have no effect. The images are selected,
            # not the conditions: keys and values chosen by scale would be copied for each.
            own = bind(cond)(x, sigma)
            return jax.lax.cond(some_zero, lambda: jnp.where(scale > 0, own, bind(null)(x, sigma)), lambda: own)

        return guidance.within(interval, both, outside)


@dataclasses.dataclass(frozen=True)
class SampleSettings:
    """How to sample (`config.sample`, documented in configs/base.py)."""

    sampler: str
    steps: int
    levels: str
    sigma_min: float
    sigma_max: float
    rho: float
    churn: float
    temperature: float
    interval: tuple[float, ...]
    threshold: str
    quantile: float
    guide_consistency: bool

    def sigmas(self, trained: noise.Levels) -> np.ndarray:
        """The noise levels that the sampler visits, for a stage trained at certain levels."""
        if self.levels == "training":
            return trained.sigmas(self.steps)
        return noise.karras_sigmas(self.steps, self.sigma_min, self.sigma_max, self.rho)

    @property
    def evaluations(self) -> int:
        """Evaluations of the guided denoiser (NFE) in each stage."""
        return 2 * self.steps - 1 if self.sampler == "heun" else self.steps

    @property
    def run(self) -> samplers.Sampler:
        """The sampler."""
        sampler = samplers.SAMPLERS[self.sampler]
        return functools.partial(sampler, churn=self.churn) if self.churn else sampler


@dataclasses.dataclass(frozen=True)
class System:
    """A cascade and what it may see: the layout of its features, their statistics, the inputs in use.

    Its networks may have room for more inputs than it sees: those are masked in all records (`seen`).
    """

    layout: features.Layout
    statistics: Mapping[str, Mapping[str, np.ndarray]]
    inputs: tuple[str, ...]
    stages: Mapping[str, Stage]

    def without(self, names: Sequence[str]) -> System:
        """The same system with some of its inputs masked. Raises `UserError` for a name that is none of them."""
        for name in names:
            if name not in self.inputs:
                raise UserError(f"{name!r} is no input of this system; its inputs are: {', '.join(self.inputs)}")
        return dataclasses.replace(self, inputs=tuple(name for name in self.inputs if name not in names))

    def seen(self, clips: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Records in which all that this system may not see is unknown.

        On the host: programs are the same whatever is masked, so that none is compiled twice.
        """
        room = self.stages[STAGES[0]].conditioner.inputs
        return features.withhold(clips, [name for name in room if name not in self.inputs])

    def features(self, clips: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Matrix [B, 256, 768] and row mask [B, 256] of a batch of records as `seen` gives them."""
        return features.assemble(clips, self.layout, self.statistics)

    def sample(
        self, params: Mapping[str, Mapping], clips: Mapping[str, jax.Array], low: jax.Array, given: jax.Array,
        noise: Mapping[str, Noise], scales: jax.Array, settings: SampleSettings, stages: Sequence[str] = STAGES,
    ) -> jax.Array:  # fmt: skip
        """S scales x B people through `stages`, one after the other.

        The people's conditions, noise, keys and values are computed once and shared by all scales. With a guidance
        interval, levels outside it cost one evaluation of the network, or two where any of the scales is 0.

        Args:
          params: of each stage.
          clips: raw records as `seen` gives them, leading axis B.
          low: [B, side, side, 3] in [-1, 1], what the first stage starts from: the guide, or for the upsampler a face
            of 32x32. given: [B], 0 = there is none, the base stage starts from noise alone.
          noise: of each stage, as `person_noise` gives it.
          scales: [S, 2], of base and upsampler, traced: a new scale does not recompile.

        Returns: images [S, B, side, side, 3] in [-1, 1], of the last stage.
        """
        matrix, mask = self.features(clips)
        conds = {name: self._conds(name, params, matrix, mask) for name in stages}
        guide, some_zero = make_guide(low), (scales == 0).any(0)

        def at(pair: jax.Array) -> jax.Array:
            image, present = low, given
            for name in stages:
                stage, i = self.stages[name], STAGES.index(name)
                start = stage.start(image, present, jnp.zeros(len(low)))
                image = stage.sample(
                    params[name], *conds[name], start, pair[i], noise[name], settings, guide, given, some_zero[i]
                )
                present = jnp.ones(len(low))
            return image

        return jax.vmap(at)(scales)

    def _conds(self, name: str, params: Mapping, matrix: jax.Array, mask: jax.Array) -> tuple[Cond, Cond]:
        """Conditions of the people, and the null branch's: one for all."""
        stage = self.stages[name]
        null = stage.condition(params[name], jnp.zeros_like(matrix[:1]), jnp.zeros_like(mask[:1]))
        return stage.condition(params[name], matrix, mask), null


def person_noise(seed: int, people: jax.Array, draws: jax.Array | int = 0, purpose: str = "sample") -> dict[str, Noise]:
    """The noise of each stage: a function of the seed, each person's number [B], that of the draw and the purpose."""
    keys = stream(stream(jax.random.key(seed), purpose), "person", people)
    keys = stream(keys, "draw", draws)
    noise = {}
    for name in STAGES:
        size, own = SIZES[name][1], stream(keys, name)
        noise[name] = Noise(_normal(stream(own, "first"), (size, size, 3)), stream(own, "way"))
    return noise


def build(
    config: ml_collections.ConfigDict, layout: features.Layout, statistics: Mapping[str, Mapping[str, np.ndarray]]
) -> System:
    """The system that a config describes. Raises `UserError` where its settings do not fit together."""
    check_system(config)
    inputs = tuple(config.data.inputs)
    room = tuple(config.model.inputs) or inputs
    features.check_inputs((*inputs, *room), layout)
    dtype = jnp.dtype(_dtype(config.model.dtype))
    stages = {}
    for name in STAGES:
        net = UNetConfig(**{k: _plain(v) for k, v in config.model[name].items()})
        conditioner = Conditioner(layout, room, net.cond_width, net.cross_widths, net.head_width, net.dropout, dtype)
        stages[name] = Stage(name, conditioner, UNet(net, dtype), **config.diffusion[name].to_dict())
    return System(layout, statistics, inputs, stages)


def sample_settings(config: ml_collections.ConfigDict) -> SampleSettings:
    """`config.sample`, checked. Raises `UserError`."""
    check_sample(config)
    return SampleSettings(**{key: _plain(value) for key, value in config.sample.items()})


def _dtype(name: str) -> str:
    """ "auto": bfloat16 on accelerators, float32 on CPU, where XLA's bfloat16 is slower."""
    return ("float32" if jax.default_backend() == "cpu" else "bfloat16") if name == "auto" else name


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value


def _rngs(dropout: jax.Array | None) -> dict[str, jax.Array]:
    return {} if dropout is None else {"dropout": dropout}


def _uniform(keys: jax.Array) -> jax.Array:
    return jax.vmap(jax.random.uniform)(keys)


def _normal(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
