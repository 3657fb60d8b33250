"""What a run tells while it trains: progress bar, metrics.jsonl, TensorBoard, validation loss, previews."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from tqdm import tqdm

from slf_jax import cascade, figures
from slf_jax.diffusion.guidance import area_average
from tfrecords.cli import UserError
from tfrecords.reader import Clips, stack

PREVIEW_PEOPLE, PREVIEW_SCALES = 8, (0.0, 1.0, 2.0)
VALIDATION_CLIPS = 64


class Log:
    """The numbers of a run. Use as a context manager."""

    def __init__(self, workdir: Path, steps: int, every: int) -> None:
        self._workdir, self._steps, self._every = workdir, steps, every

    def __enter__(self) -> Log:
        from tensorboardX import SummaryWriter

        self._events = SummaryWriter(str(self._workdir / "tensorboard"))
        self._file = (self._workdir / "metrics.jsonl").open("a")
        self._bar = tqdm(total=self._steps, unit="step", mininterval=1.0, dynamic_ncols=True)
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.close()
        self._file.close()
        self._events.close()

    def begin(self, stage: str, step: int, batch_size: int) -> None:
        """A stage begins, or goes on, after `step`."""
        self._stage, self._batch = stage, batch_size
        self._bar.set_description(stage)
        self._bar.update(step)
        self._since = (step, time.perf_counter())

    def step(self, step: int, metrics: Mapping[str, jax.Array], last: bool) -> None:
        """Takes the metrics of one step, still on the device; waits until that step is done.

        Raises `UserError` on a loss that is not finite.
        """
        loss = float(metrics["loss"])
        if not np.isfinite(loss):
            raise UserError(
                f"{self._workdir}: the loss of stage {self._stage} became {loss} at step {step}; the last good "
                "checkpoint is kept. Lower config.train.learning_rate and run the same command again"
            )
        self._bar.update(1)
        if last or step % self._every == 0:
            (before, then), now = self._since, time.perf_counter()
            self._since = (step, now)
            rate = (step - before) * self._batch / (now - then)
            numbers = {key: np.asarray(value).tolist() for key, value in metrics.items()}
            self.write(step, {**numbers, "images_per_second": rate})
            self._bar.set_postfix(loss=f"{loss:.3f}", images_s=f"{rate:.0f}")

    def write(self, step: int, numbers: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl, and the same to TensorBoard."""
        self._file.write(json.dumps({"stage": self._stage, "step": step, **numbers}) + "\n")
        self._file.flush()
        for key, value in numbers.items():
            for i, number in enumerate(np.ravel(value)):
                name = f"{self._stage}/{key}" + (f"_{i}" if isinstance(value, list) else "")
                self._events.add_scalar(name, number, step)

    def picture(self, step: int, images: np.ndarray, columns: list[str]) -> None:
        """A page of uint8 images [R, C, H, W, 3] as samples/<stage>_<step>.png and to TensorBoard."""
        path = self._workdir / "samples" / f"{self._stage}_{step:07d}.png"
        figures.image_grid(images, path, columns)
        page = np.concatenate([np.concatenate(list(row), 1) for row in images], 0)
        self._events.add_image(f"{self._stage}/samples", page, step, dataformats="HWC")


class Preview:
    """Validation loss and sample pictures of one stage, on people it does not train on (if the data has any)."""

    def __init__(self, config: ml_collections.ConfigDict, system: cascade.System, name: str, clips: Clips) -> None:
        self._system, self._stage = system, system.stages[name]
        self._settings = cascade.sample_settings(config)
        places = np.linspace(0, len(clips) - 1, min(VALIDATION_CLIPS, len(clips))).astype(int)
        self._clips = stack([clips[int(i)] for i in places])
        self._few = {key: value[:PREVIEW_PEOPLE] for key, value in self._clips.items()}
        self._loss, self._sample = jax.jit(self._mean_loss), jax.jit(self._images)

    def loss(self, params: Any) -> float:
        """Mean training loss with the same noise every time, so that it can be compared."""
        return float(self._loss(params, self._clips))

    def page(self, params: Any) -> tuple[np.ndarray, list[str]]:
        """uint8 images [people, columns, 128, 128, 3] and the columns' names: input, each scale, the real face."""
        samples = self._sample(params, self._few)
        real = cascade.to_float(jnp.asarray(self._few["face"]))
        low, own = (area_average(real, size) for size in (self._stage.low, self._stage.size))
        columns = [figures.enlarge(np.asarray(cascade.to_uint8(images)), 128) for images in (low, *samples, own)]
        names = [f"{self._stage.low}x{self._stage.low}", *(f"scale {s:g}" for s in PREVIEW_SCALES), "real"]
        return np.stack(columns, 1), names

    def _mean_loss(self, params: Any, clips: Mapping) -> jax.Array:
        count = len(clips["face"])
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(count))
        # Neighbouring noise levels would go to neighbouring clips; a fixed shuffle parts them.
        place = jax.random.permutation(jax.random.key(1), count)
        matrix, mask = self._system.features(clips)
        faces = cascade.to_float(clips["face"])
        return self._stage.loss(params, faces, matrix, mask, keys, place, count, guide_drop=0.0)[0].mean()

    def _images(self, params: Any, clips: Mapping) -> jax.Array:
        stage, count = self._stage, len(clips["face"])
        low, noise = (
            area_average(cascade.to_float(clips["face"]), stage.low),
            cascade.person_noise(0, jnp.arange(count)),
        )
        scales = jnp.array([(scale, scale) for scale in PREVIEW_SCALES])
        return self._system.sample(
            {stage.name: params}, clips, low, jnp.ones(count), noise, scales, self._settings, (stage.name,)
        )
