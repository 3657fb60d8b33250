"""What a run tells while it trains: progress bar, metrics.jsonl, TensorBoard, validation loss, previews."""

from __future__ import annotations

import functools
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

from slf_common.errors import UserError
from slf_common.files import write_atomically
from slf_jax import cascade, figures, parallel
from slf_jax.diffusion.guidance import area_average
from slf_jax.state import VALIDATION
from slf_jax.step import by_level
from slf_jax.streams import stream
from tfrecords.reader import Clips, stack

PREVIEW_PEOPLE, PREVIEW_SCALES = 8, (0.0, 1.0, 2.0)
VALIDATION_CLIPS = 64
INTERNAL = ("finite", "stop")  # metrics that steer the loop and tell nobody else anything


def is_due(step: int, every: int) -> bool:
    """Whether something is done after this step that is done every so many steps; 0: never."""
    return every > 0 and step % every == 0


class Log:
    """The numbers of a run, written by its main process alone. Use as a context manager."""

    def __init__(self, workdir: Path, steps: int, every: int) -> None:
        self._workdir, self._steps, self._every, self._main = workdir, steps, every, parallel.is_main()

    def __enter__(self) -> Log:
        self._bar = tqdm(total=self._steps, unit="step", mininterval=1.0, dynamic_ncols=True, disable=not self._main)
        self._file = self._events = None
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.close()
        self._close()

    def _close(self) -> None:
        for file in filter(None, (self._file, self._events)):
            file.close()

    def begin(self, stage: str, step: int, batch_size: int) -> None:
        """A stage begins, or goes on, after `step`; what a run that was killed told of later steps is taken back."""
        self._stage, self._batch = stage, batch_size
        self._bar.set_description(stage)
        self._bar.update(step)
        if self._main:
            self._close()
            path = self._workdir / "metrics.jsonl"
            drop_lines(path, stage, step)
            self._file = path.open("a")
            self._events = Events(self._workdir / "tensorboard" / stage, step)

    def start(self, step: int, waited: float) -> None:
        """The loop starts after `step`: from here seconds count; so many were `waited` for data before."""
        self._since = (step, time.perf_counter(), waited)

    def steps(self, last: int, metrics: Mapping[str, np.ndarray], waited: float, *, final: bool) -> None:
        """Takes the metrics [K, ...] of the K steps up to `last`.

        Args:
          waited: seconds the loop has waited for data so far.
          final: whether the numbers of `last` are to be written in any case.
        """
        count = len(metrics["loss"])
        self._bar.update(count)
        for i in range(count):
            step = last - count + 1 + i
            if is_due(step, self._every) or (self._every and final and step == last):
                told = {key: value[i] for key, value in metrics.items() if key not in INTERNAL}
                sums, items = told.pop("loss_by_sigma")
                by_sigma = (sums / np.maximum(items, 1)).tolist()
                numbers = {key: value.item() for key, value in told.items()}
                self.write(step, {**numbers, "loss_by_sigma": by_sigma, **self._speed(step, waited)})

    def _speed(self, step: int, waited: float) -> dict[str, float]:
        (before, then, waited_then), now = self._since, time.perf_counter()
        if step == before:  # the second of several steps of one dispatch
            return {}
        self._since = (step, now, waited)
        seconds = (now - then) / (step - before)
        speed = {
            "images_per_second": self._batch / seconds,
            "step_seconds": seconds,
            "data_wait": (waited - waited_then) / (now - then),
        }
        self._bar.set_postfix(images_s=f"{speed['images_per_second']:.0f}")
        memory = jax.local_devices()[0].memory_stats()
        if memory:  # a CPU has none
            speed["device_memory"] = memory["peak_bytes_in_use"]
        return speed

    def write(self, step: int, numbers: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl, and the same to TensorBoard."""
        if not self._main:
            return
        self._file.write(json.dumps({"stage": self._stage, "step": step, **numbers}) + "\n")
        self._file.flush()
        lists = {key: value for key, value in numbers.items() if isinstance(value, list)}
        each = {f"{key}_{i}": number for key, value in lists.items() for i, number in enumerate(value)}
        self._events.add(step, {key: value for key, value in (numbers | each).items() if key not in lists})

    def picture(self, step: int, images: np.ndarray, columns: list[str]) -> None:
        """A page of uint8 images [R, C, H, W, 3] as samples/<stage>_<step>.png and to TensorBoard."""
        if not self._main:
            return
        path = self._workdir / "samples" / f"{self._stage}_{step:07d}.png"
        figures.image_grid(images, path, columns)
        page = np.concatenate([np.concatenate(list(row), 1) for row in images], 0)
        self._events.add(step, {"samples": page})


class Events:
    """An event file for TensorBoard, in which nothing is told any more of steps after `step` in earlier files.

    Written from this thread, so that a full disk is noticed here.
    """

    def __init__(self, directory: Path, step: int) -> None:
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        directory.mkdir(parents=True, exist_ok=True)
        self._event, self._summary, self._writer = Event, summary, EventsWriter(str(directory / "events"))
        self._write(step + 1, session_log=SessionLog(status=SessionLog.START))

    def add(self, step: int, values: Mapping[str, float | np.ndarray]) -> None:
        """Numbers, and uint8 images [H, W, 3]."""
        for name, value in values.items():
            if isinstance(value, np.ndarray):
                told = self._summary.image(name, value, dataformats="HWC")
            else:
                told = self._summary.scalar(name, value)
            self._write(step, summary=told)
        self._writer.flush()

    def _write(self, step: int, **what: Any) -> None:
        self._writer.write_event(self._event(step=step, wall_time=time.time(), **what))

    def close(self) -> None:
        self._writer.close()


def drop_lines(path: Path, stage: str, step: int) -> None:
    """Takes the lines of `stage` after `step` out of metrics.jsonl, and a last line that was cut short."""
    if not path.exists():
        return
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1].splitlines(keepends=True)
    try:
        kept = [line for line in whole if not ((told := json.loads(line))["stage"] == stage and told["step"] > step)]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: a line is not what training writes ({error!r}); mend or delete it") from None
    if (kept := "".join(kept)) != text:
        write_atomically(path, kept.encode())


class Profile:
    """A trace of `steps` steps for TensorBoard, once the first ten are over; none if `steps` is 0."""

    WARM = 10

    def __init__(self, workdir: Path, steps: int, first: int) -> None:
        self._directory, self._begin = str(workdir / "tensorboard"), first + self.WARM
        self._end, self._on = self._begin + steps, False

    def step(self, number: int, result: Any) -> None:
        """After step `number` was dispatched, whose result is `result`."""
        if not self._on and self._begin <= number < self._end:
            jax.profiler.start_trace(self._directory)
            self._on = True
        elif self._on and number >= self._end:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        if self._on:
            jax.profiler.stop_trace()
            self._on = False


class Preview:
    """Validation loss and sample pictures of one stage, on people it does not train on (if the data has any)."""

    def __init__(self, config: ml_collections.ConfigDict, system: cascade.System, name: str, clips: Clips) -> None:
        self._system, self._stage = system, system.stages[name]
        self._settings = cascade.sample_settings(config)
        self._source = clips
        self._loss, self._sample = jax.jit(self._losses), jax.jit(self._images)

    @functools.cached_property
    def _clips(self) -> Mapping[str, np.ndarray]:
        count = len(self._source)
        places = np.linspace(0, count - 1, min(VALIDATION_CLIPS, count)).astype(int)
        return self._system.seen(stack([self._source[int(i)] for i in places]))

    def loss(self, params: Any) -> dict[str, Any]:
        """Mean training loss with the same noise every time, so that it can be compared; and by noise level."""
        with jax.transfer_guard("allow"):
            mean, (sums, items) = jax.device_get(self._loss(params, self._clips))
        return {VALIDATION: mean.item(), f"{VALIDATION}_by_sigma": (sums / np.maximum(items, 1)).tolist()}

    def page(self, params: Any) -> tuple[np.ndarray, list[str]]:
        """uint8 images [people, columns, 128, 128, 3] and the columns' names: input, each scale, the real face."""
        few = {key: value[:PREVIEW_PEOPLE] for key, value in self._clips.items()}
        with jax.transfer_guard("allow"):
            samples = jax.device_get(self._sample(params, few))
            real = cascade.to_float(jnp.asarray(few["face"]))
            low, own = (area_average(real, size) for size in (self._stage.low, self._stage.size))
            columns = [figures.enlarge(np.asarray(cascade.to_uint8(images)), 128) for images in (low, *samples, own)]
        names = [f"{self._stage.low}x{self._stage.low}", *(f"scale {s:g}" for s in PREVIEW_SCALES), "real"]
        return np.stack(columns, 1), names

    def _losses(self, params: Any, clips: Mapping) -> tuple[jax.Array, jax.Array]:
        count = len(clips["face"])
        root = stream(stream(jax.random.key(0), "validation"), self._stage.name)
        keys = stream(root, "item", jnp.arange(count))
        # Neighbouring noise levels would go to neighbouring clips; a fixed shuffle parts them.
        place = jax.random.permutation(stream(root, "order"), count)
        matrix, mask = self._system.features(clips)
        faces = cascade.to_float(clips["face"])
        loss, sigma = self._stage.loss(params, faces, matrix, mask, keys, place, count, guide_drop=0.0)
        return loss.mean(), by_level(self._stage, loss, sigma)

    def _images(self, params: Any, clips: Mapping) -> jax.Array:
        stage, count = self._stage, len(clips["face"])
        low, noise = (
            area_average(cascade.to_float(clips["face"]), stage.low),
            cascade.person_noise(0, jnp.arange(count), purpose="preview"),
        )
        scales = jnp.array([(scale, scale) for scale in PREVIEW_SCALES])
        return self._system.sample(
            {stage.name: params}, clips, low, jnp.ones(count), noise, scales, self._settings, (stage.name,)
        )
