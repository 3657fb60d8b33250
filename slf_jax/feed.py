"""Batches on their way to the devices: read ahead, split over the mesh, in the order that the seed alone decides."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from slf_jax import parallel
from tfrecords.reader import Clips, batches


class Feed:
    """An endless iterator over what `parallel.compile_steps`' result takes: the batches of `stride` steps.

    Each item's `place` in the global batch and its process's `stop` travel with the records. Batch k is a function of
    the seed alone, so the step number is the whole position. `seen` masks what the system may not see.

    Attributes: `host`, the last batches as numpy arrays [stride, B, ...]; `waited`, seconds spent so far on waiting
    for records.
    """

    def __init__(
        self, clips: Clips, batch_size: int, stride: int, *, seed: int, first: int, threads: int,
        mesh: jax.sharding.Mesh, mode: str, stop: Callable[[], bool], seen: Callable[[Mapping], Mapping],
    ) -> None:  # fmt: skip
        index, count = process = (jax.process_index(), jax.process_count())
        local = batch_size // count
        self._stream = batches(clips, local, seed=seed, start=first, process=process, threads=threads)
        self._place = np.tile(index + count * np.arange(local, dtype=np.int32), (stride, 1))
        self._stride, self._mesh, self._mode, self._stop, self._seen = stride, mesh, mode, stop, seen
        self.host: Mapping[str, np.ndarray] = {}
        self.waited = 0.0

    def __next__(self) -> Any:
        start = time.perf_counter()
        steps = [self._seen(next(self._stream)) for _ in range(self._stride)]
        self.waited += time.perf_counter() - start
        together = (lambda values: values[0][None]) if self._stride == 1 else np.stack
        records = {key: together([step[key] for step in steps]) for key in steps[0]}
        stop = np.full(self._place.shape, self._stop())
        self.host = {**records, "place": self._place, "stop": stop}
        with jax.transfer_guard("allow"):  # the one way in for data
            return parallel.split_steps(self._mesh, self._mode, self.host)
