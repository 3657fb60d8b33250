"""Batches for the devices: read ahead and split over the mesh, in an order that depends only on the seed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from slf_jax import distributed
from tfrecords.reader import Clips, batches


class InputPipeline:
    """An endless iterator over the batches of `stride` steps, as the result of `distributed.compile_steps` takes them.

    A batch contains records, each item's `batch_index` in the global batch, and the process's `stop`. Batch k is a
    function of the seed alone, so the step number is the whole state of the pipeline. `mask` masks unused inputs.

    Attributes:
      host: the last batches as NumPy arrays [stride, B, ...].
      waited: seconds spent waiting for records so far.
    """

    def __init__(
        self, clips: Clips, batch_size: int, stride: int, *, seed: int, first: int, threads: int,
        mesh: jax.sharding.Mesh, mode: str, stop: Callable[[], bool], mask: Callable[[Mapping], Mapping],
    ) -> None:  # fmt: skip
        index, count = process = (jax.process_index(), jax.process_count())
        local = batch_size // count
        self._stream = batches(clips, local, seed=seed, start=first, process=process, threads=threads)
        self._batch_index = np.tile(index + count * np.arange(local, dtype=np.int32), (stride, 1))
        self._stride, self._mesh, self._mode, self._stop, self._mask = stride, mesh, mode, stop, mask
        self.host: Mapping[str, np.ndarray] = {}
        self.waited = 0.0

    def __next__(self) -> Any:
        start = time.perf_counter()
        steps = [self._mask(next(self._stream)) for _ in range(self._stride)]
        self.waited += time.perf_counter() - start
        combine = (lambda values: values[0][None]) if self._stride == 1 else np.stack
        records = {key: combine([step[key] for step in steps]) for key in steps[0]}
        stop = np.full(self._batch_index.shape, self._stop())
        self.host = {**records, "batch_index": self._batch_index, "stop": stop}
        with jax.transfer_guard("allow"):  # the only place where data moves to the devices
            return distributed.split_steps(self._mesh, self._mode, self.host)
