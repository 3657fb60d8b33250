"""The two stages of the cascade: their losses, and both as one sampler over scales x people.

`base` lifts the 8x8 guide to 32x32, or starts from noise where there is none; `upsampler` lifts that to
128x128. Each diffuses the difference between the face and its up-sampled low-resolution image (or the face
itself), divided by its standard deviation, so that the diffusion core always sees data of unit spread.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from slf_jax import features
from slf_jax.diffusion import denoiser, guidance, noise, samplers
from slf_jax.models.conditioning import Cond, Conditioner
from slf_jax.models.unet import UNet, UNetConfig
from tfrecords.cli import UserError

GUIDE_SIZE = 8
STAGES = ("base", "upsampler")
SIZES = {"base": (GUIDE_SIZE, 32), "upsampler": (32, 128)}  # low-resolution and own side


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


@dataclasses.dataclass(frozen=True)
class Stage:
    """One U-Net of the cascade with its diffusion settings (`config.diffusion`, documented in configs/base.py)."""

    name: str
    conditioner: Conditioner
    unet: UNet
    preconditioning: str
    noise_mean: float
    noise_std: float
    max_weight: float
    residual: bool
    spread: float
    spread_alone: float
    low_noise: float

    @property
    def low(self) -> int:
        return SIZES[self.name][0]

    @property
    def size(self) -> int:
        return SIZES[self.name][1]

    def init(self, key: jax.Array) -> dict:
        """Random parameters, `{"conditioner": ..., "unet": ...}`."""
        matrix = jnp.zeros((1, features.MATRIX_ROWS, features.MATRIX_WIDTH))
        keys = jax.random.split(key)
        cond, conditioner = self.conditioner.init_with_output(keys[0], matrix, matrix[:, :, 0] > 0)
        images = jnp.zeros((1, self.size, self.size, 6))
        unet = self.unet.init(keys[1], images, jnp.zeros(1), jnp.zeros((1, 2)), cond)
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
          keys: one per item; everything random about an item comes from its key.
          place, count: of the items in the global batch, over which noise levels are spread evenly.
          guide_drop: share of items whose guide is withheld (base only).
        """
        k_level, k_low, k_guide, k_sigma, k_noise = jnp.moveaxis(jax.vmap(lambda k: jax.random.split(k, 5))(keys), 1, 0)
        face, low = guidance.area_average(faces, self.size), guidance.area_average(faces, self.low)
        present = jnp.ones(len(faces))
        if self.name == "base":
            present = (_uniform(k_guide) >= guide_drop).astype(jnp.float32)
        level = _uniform(k_level) * self.low_noise
        noisy = low + level[:, None, None, None] * _normal(k_low, low.shape[1:])
        # The network sees the noisy image, but what it has to find is the difference from the clean one.
        clean, start = self.start(low, present, level), self.start(noisy, present, level)
        data = (face - self.offset(clean)) / self.unit(present)
        uniform = noise.stratified(_uniform(k_sigma), place, count)
        sigma = noise.lognormal(uniform, self.noise_mean, self.noise_std)
        drops = (None, None) if dropout is None else jax.random.split(dropout)
        cond = self.condition(params, matrix, mask, drops[0])
        denoise = self.denoiser(params, start, drops[1])
        loss = denoiser.denoising_loss(denoise, data, _normal(k_noise, face.shape[1:]), sigma, cond, self.max_weight)
        return loss, sigma

    def sample(
        self, params: Mapping, cond: Cond, null: Cond, start: Start, scale: jax.Array, unit_noise: jax.Array,
        settings: SampleSettings, guide: jax.Array, guided: jax.Array,
    ) -> jax.Array:  # fmt: skip
        """Images [B, size, size, 3] at one guidance scale. `guide` [B, 8, 8, 3], `guided` [B] (1: there is one)."""
        unit, offset = self.unit(start.present), self.offset(start)
        denoise = self.denoiser(params, start)
        both = guidance.classifier_free(
            lambda x, sigma: denoise(x, sigma, cond), lambda x, sigma: denoise(x, sigma, null), scale
        )

        def correct(data: jax.Array) -> jax.Array:
            image = jnp.clip(offset + unit * data, -1, 1)
            if settings.guide_consistency:
                matched = guidance.match_average(image, guide)
                image = jnp.where(guided[:, None, None, None] > 0, matched, image)
            return (image - offset) / unit

        sigmas = noise.karras_sigmas(settings.steps, settings.sigma_min, settings.sigma_max, settings.rho)
        x = sigmas[0] * settings.temperature * unit_noise
        data = samplers.SAMPLERS[settings.sampler](guidance.corrected(both, correct), x, sigmas)
        return jnp.clip(offset + unit * data, -1, 1)


@dataclasses.dataclass(frozen=True)
class SampleSettings:
    """How to sample (`config.sample`, documented in configs/base.py)."""

    sampler: str
    steps: int
    sigma_min: float
    sigma_max: float
    rho: float
    temperature: float
    guide_consistency: bool


@dataclasses.dataclass(frozen=True)
class System:
    """A cascade and what it may see: the layout of its features, their statistics, the inputs in use."""

    layout: features.Layout
    statistics: Mapping[str, Mapping[str, np.ndarray]]
    inputs: tuple[str, ...]
    stages: Mapping[str, Stage]

    def features(self, clips: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Matrix [B, 256, 768] and row mask [B, 256] of a batch of records."""
        matrix, mask = features.assemble(clips, self.layout, self.statistics)
        return matrix, features.select(mask, self.layout, self.inputs)

    def sample(
        self, params: Mapping[str, Mapping], clips: Mapping[str, jax.Array], guides: jax.Array, guided: jax.Array,
        unit_noise: Mapping[str, jax.Array], scales: jax.Array, settings: SampleSettings,
    ) -> jax.Array:  # fmt: skip
        """S scales x B people through both stages.

        The people's conditions, noise, keys and values are computed once and shared by all scales.

        Args:
          params: of each stage.
          clips: raw records, leading axis B. guides: [B, 8, 8, 3] in [-1, 1]. guided: [B], 0 = from noise alone.
          unit_noise: of each stage, [B, size, size, 3].
          scales: [S], traced: a new scale does not recompile.

        Returns: images [S, B, 128, 128, 3] in [-1, 1].
        """
        matrix, mask = self.features(clips)
        conds = {name: self._conds(name, params, matrix, mask) for name in STAGES}

        def at(scale: jax.Array) -> jax.Array:
            image, present = guides, guided
            for name in STAGES:
                stage = self.stages[name]
                start = stage.start(image, present, jnp.zeros(len(guides)))
                image = stage.sample(
                    params[name], *conds[name], start, scale, unit_noise[name], settings, guides, guided
                )
                present = jnp.ones(len(guides))
            return image

        return jax.vmap(at)(scales)

    def sample_stage(
        self, name: str, params: Mapping, clips: Mapping[str, jax.Array], faces: jax.Array,
        unit_noise: jax.Array, scales: jax.Array, settings: SampleSettings,
    ) -> jax.Array:  # fmt: skip
        """One stage alone, from the real low-resolution image of `faces`; [S, B, size, size, 3]."""
        stage, ones = self.stages[name], jnp.ones(len(faces))
        cond, null = self._conds(name, {name: params}, *self.features(clips))
        start = stage.start(guidance.area_average(faces, stage.low), ones, 0 * ones)
        sample = lambda scale: stage.sample(  # noqa: E731
            params, cond, null, start, scale, unit_noise, settings, make_guide(faces), ones
        )
        return jax.vmap(sample)(scales)

    def _conds(self, name: str, params: Mapping, matrix: jax.Array, mask: jax.Array) -> tuple[Cond, Cond]:
        """Conditions of the people, and the null branch's: one for all."""
        stage = self.stages[name]
        null = stage.condition(params[name], jnp.zeros_like(matrix[:1]), jnp.zeros_like(mask[:1]))
        return stage.condition(params[name], matrix, mask), null


def person_noise(seed: int, people: jax.Array) -> dict[str, jax.Array]:
    """Unit noise of each stage [B, size, size, 3], a function of the seed and of each person's number alone."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), people)
    shapes = {name: (SIZES[name][1], SIZES[name][1], 3) for name in STAGES}
    return {
        name: _normal(jax.vmap(lambda k, i=i: jax.random.fold_in(k, i))(keys), shapes[name])
        for i, name in enumerate(STAGES)
    }


def build(
    config: ml_collections.ConfigDict, layout: features.Layout, statistics: Mapping[str, Mapping[str, np.ndarray]]
) -> System:
    """The system that a config describes. Raises `UserError` where its settings do not fit together."""
    inputs = tuple(config.data.inputs)
    features.check_inputs(inputs, layout)
    dtype = jnp.dtype(_dtype(config.model.dtype))
    stages = {}
    for name in STAGES:
        try:
            net = UNetConfig(**{k: _plain(v) for k, v in config.model[name].items()})
            conditioner = Conditioner(
                layout, inputs, net.cond_width, net.cross_widths, net.head_width, net.dropout, dtype
            )
            stages[name] = Stage(name, conditioner, UNet(net, dtype), **config.diffusion[name].to_dict())
        except (TypeError, ValueError) as error:
            raise UserError(f"config.model.{name} or config.diffusion.{name}: {error}") from None
    return System(layout, statistics, inputs, stages)


def sample_settings(config: ml_collections.ConfigDict) -> SampleSettings:
    settings = SampleSettings(**config.sample.to_dict())
    if settings.sampler not in samplers.SAMPLERS:
        raise UserError(f"config.sample.sampler={settings.sampler!r} is none of: {', '.join(samplers.SAMPLERS)}")
    if settings.steps < 1:
        raise UserError(f"config.sample.steps={settings.steps}: a sampler takes at least one step")
    return settings


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
