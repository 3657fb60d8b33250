"""Logs of a training run: progress bar, metrics.jsonl, TensorBoard, profiler traces."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np
from tqdm import tqdm

from slf_jax import distributed
from slf_jax.plots import grids
from slf_jax.training.metrics import drop_lines

INTERNAL = ("finite", "stop")  # metrics that only control the loop


def is_due(step: int, every: int) -> bool:
    """Whether an action that is repeated every `every` steps (0: never) is due after this one."""
    return every > 0 and step % every == 0


class Log:
    """Progress and metrics of a run, written by its main process only. Use as a context manager."""

    def __init__(self, workdir: Path, steps: int, every: int) -> None:
        self._workdir, self._steps, self._every, self._main = workdir, steps, every, distributed.is_main()

    def __enter__(self) -> Log:
        self._bar = tqdm(total=self._steps, unit="step", mininterval=1.0, dynamic_ncols=True, disable=not self._main)
        self._file: TextIO | None = None
        self._events: Events | None = None
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.close()
        self._close()

    def _close(self) -> None:
        for file in (self._file, self._events):
            if file is not None:
                file.close()

    def begin(self, stage: str, step: int, batch_size: int) -> None:
        """Starts or resumes a stage after `step`; removes what a killed run logged for later steps."""
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
        """Starts timing after `step`; `waited`: seconds spent waiting for data so far."""
        self._since = (step, time.perf_counter(), waited)

    def steps(self, last: int, metrics: Mapping[str, np.ndarray], waited: float, *, final: bool) -> None:
        """Logs the metrics [K, ...] of the K steps up to `last`.

        Args:
          waited: seconds the loop has waited for data so far.
          final: whether to write the metrics of `last` even if they are not due.
        """
        count = len(metrics["loss"])
        self._bar.update(count)
        for i in range(count):
            step = last - count + 1 + i
            if is_due(step, self._every) or (self._every and final and step == last):
                logged = {key: value[i] for key, value in metrics.items() if key not in INTERNAL}
                sums, items = logged.pop("loss_by_sigma")
                by_sigma = (sums / np.maximum(items, 1)).tolist()
                numbers = {key: value.item() for key, value in logged.items()}
                self.write(step, {**numbers, "loss_by_sigma": by_sigma, **self._speed(step, waited)})

    def _speed(self, step: int, waited: float) -> dict[str, float]:
        (before, then, waited_then), now = self._since, time.perf_counter()
        if step == before:  # another step of the same dispatch
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
        """Writes a line to metrics.jsonl, and the same numbers to TensorBoard."""
        if self._file is None or self._events is None:
            return
        self._file.write(json.dumps({"stage": self._stage, "step": step, **numbers}) + "\n")
        self._file.flush()
        lists = {key: value for key, value in numbers.items() if isinstance(value, list)}
        each = {f"{key}_{i}": number for key, value in lists.items() for i, number in enumerate(value)}
        self._events.add(step, {key: value for key, value in (dict(numbers) | each).items() if key not in lists})

    def picture(self, step: int, columns: Mapping[str, np.ndarray]) -> None:
        """Writes named columns of uint8 images [R, h, w, 3] to samples/<stage>_<step>.png and to TensorBoard."""
        if self._events is None:
            return
        path = self._workdir / "samples" / f"{self._stage}_{step:07d}.png"
        grids.image_grid(columns, path)
        page = np.concatenate([np.concatenate(list(row), 1) for row in grids.stack_columns(columns)], 0)
        self._events.add(step, {"samples": page})


class Events:
    """An event file for TensorBoard that also makes it discard events of earlier files after `step`.

    Written in the calling thread, so that a full disk raises here.
    """

    def __init__(self, directory: Path, step: int) -> None:
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        directory.mkdir(parents=True, exist_ok=True)
        self._event, self._summary, self._writer = Event, summary, EventsWriter(str(directory / "events"))
        self._write(step + 1, session_log=SessionLog(status=SessionLog.START))

    def add(self, step: int, values: Mapping[str, float | np.ndarray]) -> None:
        """Writes numbers, and uint8 images [H, W, 3], by name."""
        for name, value in values.items():
            if isinstance(value, np.ndarray):
                summary = self._summary.image(name, value, dataformats="HWC")
            else:
                summary = self._summary.scalar(name, value)
            self._write(step, summary=summary)
        self._writer.flush()

    def _write(self, step: int, **fields: Any) -> None:
        self._writer.write_event(self._event(step=step, wall_time=time.time(), **fields))

    def close(self) -> None:
        self._writer.close()


class Profile:
    """A profiler trace of `steps` steps for TensorBoard, after the first ten; none if `steps` is 0."""

    WARM_UP = 10

    def __init__(self, workdir: Path, steps: int, first: int) -> None:
        self._directory, self._begin = str(workdir / "tensorboard"), first + self.WARM_UP
        self._end, self._on = self._begin + steps, False

    def step(self, number: int, result: Any) -> None:
        """Starts or ends the trace; call after step `number`, with result `result`, was dispatched."""
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
