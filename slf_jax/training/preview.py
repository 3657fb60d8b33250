"""Validation loss and sample pictures of one stage during training."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from slf_jax.cascade.distillation import Teacher
from slf_jax.cascade.images import downscale, to_float, to_uint8
from slf_jax.cascade.settings import sample_settings
from slf_jax.cascade.system import System, person_noise
from slf_jax.diffusion.guidance import area_average
from slf_jax.streams import stream
from slf_jax.training.metrics import IDENTITY, VALIDATION
from slf_jax.training.step import bucket_by_sigma
from tfrecords.reader import Clips, stack

PREVIEW_PEOPLE, PREVIEW_SCALES = 8, (0.0, 1.0, 2.0)
VALIDATION_CLIPS = 64  # clips that the validation loss is computed on


class Preview:
    """Computes validation loss and sample pictures of one stage on `clips`, held-out ones if the data has any.

    With a `teacher`, whose parameters of the stage are `taught_by`, the loss is the distance to its estimates.
    """

    def __init__(
        self, config: ml_collections.ConfigDict, system: System, name: str, clips: Clips,
        teacher: Teacher | None = None, taught_by: Any = None,
    ) -> None:  # fmt: skip
        self._teacher, self._taught_by = teacher, taught_by
        self._system, self._stage = system, system.stages[name]
        self._settings = sample_settings(config)
        self._source = clips
        self._loss, self._sample = jax.jit(self._losses), jax.jit(self._images)

    @functools.cached_property
    def _clips(self) -> Mapping[str, np.ndarray]:
        count = len(self._source)
        indices = np.linspace(0, count - 1, min(VALIDATION_CLIPS, count)).astype(int)
        return self._system.mask_unused_inputs(stack([self._source[int(i)] for i in indices]))

    def loss(self, params: Any) -> dict[str, Any]:
        """Mean training loss, overall and by noise level, always with the same noise so that steps are comparable."""
        with jax.transfer_guard("allow"):
            mean, (sums, items), cosine = jax.device_get(self._loss(params, self._clips, self._taught_by))
        by_sigma = (sums / np.maximum(items, 1)).tolist()
        identity = {} if cosine is None else {IDENTITY: cosine.item()}
        return {VALIDATION: mean.item(), f"{VALIDATION}_by_sigma": by_sigma, **identity}

    def columns(self, params: Any) -> dict[str, np.ndarray]:
        """Images uint8 [people, side, side, 3] by column: the stage's input, samples at each scale, the real face."""
        clips, low = {key: value[:PREVIEW_PEOPLE] for key, value in self._clips.items()}, self._stage.lowres_size
        with jax.transfer_guard("allow"):
            samples = np.asarray(to_uint8(self._sample(params, clips)))
            inputs, real = (downscale(clips["face"], size) for size in (low, self._stage.size))
        by_scale = {f"scale {scale:g}": images for scale, images in zip(PREVIEW_SCALES, samples, strict=True)}
        return {f"{low}x{low}": inputs, **by_scale, "real": real}

    def _losses(self, params: Any, clips: Mapping, taught_by: Any) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        count = len(clips["face"])
        root = stream(stream(jax.random.key(0), "validation"), self._stage.name)
        keys = stream(root, "item", jnp.arange(count))
        # A fixed shuffle, since otherwise neighbouring clips would get neighbouring noise levels.
        batch_index = jax.random.permutation(stream(root, "order"), count)
        matrix, mask = self._system.features(clips)
        faces = to_float(clips["face"])
        lesson = self._teacher.lesson(self._stage.name, taught_by) if self._teacher else None
        loss, sigma, cond = self._stage.loss(
            params, faces, matrix, mask, keys, batch_index, count, thumbnail_drop=0.0, lesson=lesson
        )
        cosine = self._system.identity_cosine(cond, clips, mask)
        identity = None if cosine is None else jnp.nanmean(cosine)
        return loss.mean(), bucket_by_sigma(self._stage, loss, sigma), identity

    def _images(self, params: Any, clips: Mapping) -> jax.Array:
        stage, count = self._stage, len(clips["face"])
        low = area_average(to_float(clips["face"]), stage.lowres_size)
        noise = person_noise(0, jnp.arange(count), purpose="preview")
        scales = jnp.array([(scale, scale) for scale in PREVIEW_SCALES])
        return self._system.sample(
            {stage.name: params}, clips, low, jnp.ones(count), noise, scales, self._settings, (stage.name,)
        )
