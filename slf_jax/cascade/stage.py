"""One U-Net of the cascade: its loss and its sampler.

`base` takes the 8x8 thumbnail to 32x32, or starts from noise without one; `upsampler` takes that to 128x128. Each
diffuses the difference between the face and its up-sampled low-resolution image (or the face itself), divided by its
standard deviation, so that the diffusion code always sees data of unit variance.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, cast

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from slf_jax import features
from slf_jax.cascade.images import upsample
from slf_jax.cascade.settings import SampleSettings
from slf_jax.cascade.sizes import SIZES, STAGES
from slf_jax.diffusion import denoiser, flow, guidance, noise
from slf_jax.diffusion.denoiser import Denoiser
from slf_jax.models.conditioning import Cond, Conditioner
from slf_jax.models.unet import UNet
from slf_jax.pytrees import serializable
from slf_jax.streams import stream


@flax.struct.dataclass
class LowResCond:
    """The low-resolution image that a stage is conditioned on.

    Attributes:
      image: [B, H, W, 3], up-sampled; zeros without an image.
      has_image: [B], 1 where there is an image, else 0.
      aug_level: [B], standard deviation of the noise added to it (noise conditioning augmentation, Ho et al. 2022).
    """

    image: jax.Array
    has_image: jax.Array
    aug_level: jax.Array


@flax.struct.dataclass
class Noise:
    """Noise of one stage: the initial noise `first` [B, size, size, 3], and `keys` [B] for samplers that add more."""

    first: jax.Array
    keys: jax.Array


serializable(LowResCond, Noise)


class Weak(NamedTuple):
    """A worse stage on the same diffused data, its parameters, and the same people's conditions as encoded by it."""

    stage: Stage
    params: Mapping
    cond: Cond


class Branches(NamedTuple):
    """What a stage is conditioned on in each branch of guidance.

    Attributes:
      conds: unconditional, then with one more group of inputs each; of a distilled network, and maybe with `weak`, only
        the last one.
      weak: a worse stage to guide with, evaluated before the last of `conds`.
      lowres_known: for each of `conds`, whether the network is given the low-resolution image with it; (): with all.
    """

    conds: Sequence[Cond]
    weak: Weak | None = None
    lowres_known: Sequence[bool] = ()


class SweepPoint(NamedTuple):
    """The traced numbers of a stage that a sweep varies.

    Attributes:
      scales: guidance scales [G], of each group of inputs, and of `Branches.weak` last.
      some_zero: whether any scale of the sweep is 0, the same at all of its points.
      numbers: values of the settings `settings.NUMBERS`.
      thumbnail_scale: the scale of the group of inputs that has the thumbnail.
    """

    scales: jax.Array
    some_zero: jax.Array
    numbers: Mapping[str, jax.Array | float]
    thumbnail_scale: jax.Array | float = 1.0


class Items(NamedTuple):
    """The items of a batch from which a lesson makes its task.

    Attributes:
      quantile: [B], of the distribution of noise levels.
      data, unit: [B, H, W, 3], the clean data and unit noise.
      lowres: the low-resolution image that the network sees.
      clean: the same without added noise.
      faces: [B, 128, 128, 3] in [-1, 1].
      matrix, mask: the features after conditions were dropped.
      keys: one per item.
    """

    quantile: jax.Array
    data: jax.Array
    unit: jax.Array
    lowres: LowResCond
    clean: LowResCond
    faces: jax.Array
    matrix: jax.Array
    mask: jax.Array
    keys: jax.Array


class Task(NamedTuple):
    """What a distilled network is trained on: x, sigma [B] and scales [B, G], and the x0 estimate it must give."""

    x: jax.Array
    sigma: jax.Array
    scales: jax.Array
    target: jax.Array


Lesson = Callable[[Items], Task]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One U-Net of the cascade with its diffusion settings (`config.diffusion`, documented in configs/base.py).

    `scales`: number of guidance scales that a distilled network takes as input; 0: it takes none.
    """

    name: str
    conditioner: Conditioner
    unet: UNet
    preconditioning: str
    sigma_distribution: str
    p_mean: float
    p_std: float
    weight: str
    max_weight: float
    residual: bool
    sigma_data: float
    sigma_data_no_lowres: float
    lowres_aug_max: float
    flow_noise: float
    scales: int = 0

    @property
    def is_flow(self) -> bool:
        """Whether this stage is a flow from its posterior mean, with times in place of noise levels."""
        return self.preconditioning == "flow"

    @property
    def sigmas(self) -> noise.SigmaDistribution:
        """The distribution of sigma in training, or of the times of a flow."""
        return noise.SigmaDistribution("uniform" if self.is_flow else self.sigma_distribution, self.p_mean, self.p_std)

    @property
    def lowres_size(self) -> int:
        """Side of the low-resolution image."""
        return SIZES[self.name][0]

    @property
    def size(self) -> int:
        """Side of the output image."""
        return SIZES[self.name][1]

    def init(self, key: jax.Array) -> dict:
        """Random parameters, `{"conditioner": ..., "unet": ...}`."""
        matrix = jnp.zeros((1, features.MATRIX_ROWS, features.MATRIX_WIDTH))
        keys = {part: stream(key, part) for part in ("conditioner", "unet")}
        cond, conditioner = self.conditioner.init_with_output(keys["conditioner"], matrix, matrix[:, :, 0] > 0)
        images = jnp.zeros((1, self.size, self.size, 6))
        scales = jnp.zeros((1, self.scales)) if self.scales else None
        unet = self.unet.init(keys["unet"], images, jnp.zeros(1), jnp.zeros((1, 2)), cond, scales=scales)
        return {"conditioner": conditioner["params"], "unet": unet["params"]}

    def condition(self, params: Mapping, matrix: jax.Array, mask: jax.Array, dropout: jax.Array | None = None) -> Cond:
        """Encodes the feature matrix [B, 256, 768] and its row mask [B, 256] for the U-Net.

        `dropout`: the key of the dropout masks in training; None: no dropout.
        """
        variables = {"params": params["conditioner"]}
        cond = self.conditioner.apply(variables, matrix, mask, dropout is not None, rngs=_rngs(dropout))
        return cast(Cond, cond)

    def denoiser(
        self, params: Mapping, lowres: LowResCond, dropout: jax.Array | None = None, scales: jax.Array | None = None
    ) -> denoiser.Denoiser:
        """`denoise(x, sigma, cond)` on this stage's standardised data; `scales` [B, G] or [1, G] if it is distilled."""
        extras = jnp.stack([lowres.has_image, lowres.aug_level], -1)

        def network(x: jax.Array, c_noise: jax.Array, cond: Cond) -> jax.Array:
            images, variables = jnp.concatenate([x, lowres.image], -1), {"params": params["unet"]}
            out = self.unet.apply(
                variables, images, c_noise, extras, cond, dropout is not None, scales, rngs=_rngs(dropout)
            )
            return cast(jax.Array, out)

        return denoiser.make_denoiser(network, self.preconditioning)

    def data_std(self, has_image: jax.Array) -> jax.Array:
        """Standard deviation [B, 1, 1, 1] of the diffused data, with or without a low-resolution image."""
        return jnp.where(has_image > 0, self.sigma_data, self.sigma_data_no_lowres)[:, None, None, None]

    def data_mean(self, lowres: LowResCond) -> jax.Array:
        """The image that is subtracted from the face before division by `data_std`."""
        return lowres.image * float(self.residual)

    def lowres_cond(self, images: jax.Array, has_image: jax.Array, aug_level: jax.Array) -> LowResCond:
        """Conditioning on low-resolution images [B, lowres_size, lowres_size, 3], possibly noisy."""
        image = upsample(images, self.size) * has_image[:, None, None, None]
        return LowResCond(image, has_image, aug_level)

    def loss(
        self, params: Mapping, faces: jax.Array, matrix: jax.Array, mask: jax.Array, keys: jax.Array,
        batch_index: jax.Array, count: int, *, thumbnail_drop: float, dropout: jax.Array | None = None,
        lesson: Lesson | None = None,
    ) -> tuple[jax.Array, jax.Array, Cond]:  # fmt: skip
        """Weighted loss [B], the noise levels [B] at which it was evaluated, and the encoded conditions.

        Args:
          faces: [B, 128, 128, 3] in [-1, 1].
          keys: one per item; all randomness of an item is derived from its key, by name.
          batch_index, count: index of each item in the global batch and the batch's size, to stratify noise levels.
          thumbnail_drop: share of items trained without their thumbnail (base only).
          dropout: key of the dropout masks; None: no dropout.
          lesson: of a distilled network: what it must estimate, instead of the clean data.
        """
        face, low = guidance.area_average(faces, self.size), guidance.area_average(faces, self.lowres_size)
        has_image = jnp.ones(len(faces))
        if self.name == "base":
            has_image = (_uniform(stream(keys, "guide")) >= thumbnail_drop).astype(jnp.float32)
        aug_level = _uniform(stream(keys, "low level")) * self.lowres_aug_max
        noisy = low + aug_level[:, None, None, None] * normal(stream(keys, "low noise"), low.shape[1:])
        # The network is conditioned on the noisy image, but its target is the difference from the clean one.
        clean, lowres = (self.lowres_cond(images, has_image, aug_level) for images in (low, noisy))
        data = (face - self.data_mean(clean)) / self.data_std(has_image)
        quantile = noise.stratified(_uniform(stream(keys, "sigma")), batch_index, count)
        drops = {part: None if dropout is None else stream(dropout, part) for part in ("conditioner", "unet")}
        cond = self.condition(params, matrix, mask, drops["conditioner"])
        unit = normal(stream(keys, "noise"), data.shape[1:])
        if lesson is not None:
            task = lesson(Items(quantile, data, unit, lowres, clean, faces, matrix, mask, keys))
            denoise = self.denoiser(params, lowres, drops["unet"], task.scales)
            error = denoise(task.x, task.sigma, cond) - task.target
            weight = denoiser.loss_weight(self.weight, task.sigma, self.max_weight)
            return weight * jnp.square(error).mean((1, 2, 3)), task.sigma, cond
        sigma = self.sigmas(quantile)
        denoise = self.denoiser(params, lowres, drops["unet"])
        weight = denoiser.loss_weight(self.weight, sigma, self.max_weight)
        if self.is_flow:
            return flow.flow_loss(denoise, data, self.flow_noise * unit, sigma, cond, weight), sigma, cond
        return denoiser.denoising_loss(denoise, data, unit, sigma, cond, weight), sigma, cond

    def augment(self, lowres: LowResCond, level: jax.Array | float, keys: jax.Array) -> LowResCond:
        """Adds noise of standard deviation `level` to the low-resolution image, as in training; one key per item.

        The noise is up-sampled by itself: the image remains bitwise the same at level 0, and the noise is computed once
        for all scales.
        """
        added = normal(stream(keys, "low noise"), (self.lowres_size, self.lowres_size, 3))
        image = lowres.image + level * upsample(added, self.size)
        return LowResCond(image, lowres.has_image, lowres.aug_level + level)

    def sample(
        self, params: Mapping, branches: Branches, lowres: LowResCond, point: SweepPoint, noise: Noise,
        settings: SampleSettings, thumbnail: jax.Array, has_thumbnail: jax.Array,
    ) -> jax.Array:  # fmt: skip
        """Samples images [B, size, size, 3] at one point of a sweep.

        Args:
          lowres: without noise; the upsampler's network sees it with noise of the number `lowres_aug`.
          thumbnail: [B, 8, 8, 3], used for thumbnail consistency.
          has_thumbnail: [B], 1 where there is one, else 0. Where `point.thumbnail_scale` is 0, neither the start nor
            the result depends on it.
        """
        std, mean = self.data_std(lowres.has_image), self.data_mean(lowres)
        has_thumbnail = has_thumbnail * point.thumbnail_scale
        correct = self.correction(lowres, settings, thumbnail, has_thumbnail)
        if self.name == "upsampler":
            lowres = self.augment(lowres, point.numbers["lowres_aug"], noise.keys)
        guided = guidance.with_x0_correction(self.guided(params, branches, lowres, point, settings), correct)
        sigmas, start, unit = self.levels(settings), jnp.zeros_like(noise.first), noise.first
        if not all(branches.lowres_known):
            # At the thumbnail's scale 0, sampling starts as without one: around 0 instead of the low-resolution image.
            lost = jnp.maximum(1 - point.thumbnail_scale, 0)
            start -= mean / std * lost
            if self.is_flow:  # its mean is guided, so only its noise must change to that of other data
                unit *= 1 + lost * (self.sigma_data_no_lowres / std - 1)
        x = self.noisy(start, self.origin(guided, noise.first), unit, sigmas[:1], settings)
        x0 = settings.run(guided, x, sigmas, noise.keys)
        image = jnp.clip(mean + std * x0, -1, 1)
        if not settings.thumbnail_consistency:
            return image
        return _where(has_thumbnail, guidance.match_average_in_range(image, thumbnail), image)

    def correction(
        self, lowres: LowResCond, settings: SampleSettings, thumbnail: jax.Array, has_thumbnail: jax.Array
    ) -> Callable[[jax.Array], jax.Array]:
        """Brings x0 estimates into the range of pixels, and to the thumbnail where there is one; see `sample`."""
        std, mean = self.data_std(lowres.has_image), self.data_mean(lowres)

        def correct(x0: jax.Array) -> jax.Array:
            kind, percentile = settings.x0_threshold, settings.dynamic_threshold_percentile
            image = guidance.threshold(mean + std * x0, kind, percentile)
            if settings.thumbnail_consistency:
                image = _where(has_thumbnail, guidance.match_average(image, thumbnail), image)
            return (image - mean) / std

        return correct

    def levels(self, settings: SampleSettings) -> np.ndarray:
        """The noise levels [steps + 1] that the sampler visits, or the times of a flow."""
        return self.sigmas.sigmas(settings.steps) if self.is_flow else settings.sigmas(self.sigmas)

    def origin(self, guided: guidance.Guided, like: jax.Array) -> jax.Array:
        """The posterior mean of data shaped as `like`, which a flow starts from; zeros in diffusion."""
        return flow.posterior_mean(guided, like) if self.is_flow else jnp.zeros_like(like)

    def noisy(
        self, data: jax.Array, origin: jax.Array, unit: jax.Array, sigma: jax.Array | np.ndarray,
        settings: SampleSettings,
    ) -> jax.Array:  # fmt: skip
        """Data with noise of levels `sigma`, or at these times on the way from `origin`, as a sampler meets them.

        `unit`: noise, which the sampler's `init_noise_scale` multiplies. At time 1 the data do not matter.
        """
        level = denoiser.expand(jnp.asarray(sigma), data)
        if self.is_flow:
            return data + level * (origin + self.flow_noise * settings.init_noise_scale * unit - data)
        return data + level * settings.init_noise_scale * unit

    def guided(
        self, params: Mapping, branches: Branches, lowres: LowResCond, point: SweepPoint, settings: SampleSettings
    ) -> guidance.Guided:
        """Guidance within this stage's interval of sigma, or at all noise levels if the interval is empty.

        A distilled network gives the guided estimate itself, in one evaluation.
        """
        if self.scales:
            at_scales = self.denoiser(params, lowres, scales=jnp.broadcast_to(point.scales, (1, self.scales)))
            return guidance.as_guided(lambda x, sigma: at_scales(x, sigma, branches.conds[-1]))
        chain = self._chain(params, branches, lowres)
        guided = guidance.guide(settings.guidance, chain, point.scales, point.numbers)
        interval = settings.guidance_interval[STAGES.index(self.name)]
        if not interval:
            return guided
        return guidance.guidance_interval(interval, guided, guidance.unguided(chain, point.scales, point.some_zero))

    def _chain(self, params: Mapping, branches: Branches, lowres: LowResCond) -> guidance.Chain:
        """The chain of denoisers for guidance, of data standardised as with the low-resolution image."""
        conds, weak, known = branches
        # Each is traced once, for all links that have the same shapes.
        own, without = jax.jit(self.denoiser(params, lowres)), jax.jit(self._denoiser_without_lowres(params, lowres))
        links: list[tuple[Denoiser, Cond]] = [
            (own if with_image else without, cond)
            for cond, with_image in zip(conds, known or [True] * len(conds), strict=True)
        ]
        if weak:
            links.insert(-1, (jax.jit(weak.stage.denoiser(weak.params, lowres)), weak.cond))
        return [functools.partial(_denoise, denoise, cond) for denoise, cond in links]

    def _denoiser_without_lowres(self, params: Mapping, lowres: LowResCond) -> Denoiser:
        """The denoiser that is not given `lowres`, on data standardised as with it."""
        none = LowResCond(jnp.zeros_like(lowres.image), jnp.zeros_like(lowres.has_image), lowres.aug_level)
        own, to = ((self.data_mean(each), self.data_std(each.has_image)) for each in (none, lowres))
        restandardised = flow.restandardised if self.is_flow else denoiser.restandardised
        return restandardised(self.denoiser(params, none), own, to)


def normal(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal noise [B, *shape], one key per item."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def _where(known: jax.Array, images: jax.Array, others: jax.Array) -> jax.Array:
    """Each item [B, H, W, C] of `images` whose `known` [B] is above 0, else of `others`."""
    return jnp.where(known[:, None, None, None] > 0, images, others)


def _denoise(denoise: Denoiser, cond: Cond, x: jax.Array, sigma: jax.Array) -> jax.Array:
    return denoise(x, sigma, cond)


def _uniform(keys: jax.Array) -> jax.Array:
    return jax.vmap(jax.random.uniform)(keys)


def _rngs(dropout: jax.Array | None) -> dict[str, jax.Array]:
    return {} if dropout is None else {"dropout": dropout}
