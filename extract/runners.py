"""Runs the chunks in this process, in several processes on this machine, or on a Ray cluster.

A runner first describes its models (`describe`), which gives the dataset's schema, and then processes chunks (`run`).
All runners call the same functions, and each process loads the models once.
"""

from __future__ import annotations

import functools
import json
import logging
import multiprocessing
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.queues import SimpleQueue
from typing import Any, Protocol

from extract import deepface
from extract.chunk import ChunkResult, Models, RunSpec, process_chunk
from extract.extractors.registry import EXTRACTORS
from extract.frameworks import ENVIRONMENT
from extract.plan import Chunk
from slf_common import cli
from slf_common.environment import environment
from slf_common.errors import UserError
from tfrecords.schema import Schema

RUNNERS = ("local", "ray")
DEVICES = ("auto", "cpu", "cuda")
# Environment variables that the numeric libraries read when they are imported.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
CORES_PER_WORKER = 4  # with networks: more workers are not faster, and each loads all models
VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"


class Runner(Protocol):
    """Loads the models and processes chunks, in one or several processes."""

    def describe(self) -> tuple[Schema, dict, list[str]]:
        """Returns the schema of the models, the provenance of faces and attributes, and lines about missing models."""
        ...

    def run(self, chunks: Sequence[Chunk], spec: RunSpec) -> Iterator[tuple[Chunk, ChunkResult]]:
        """Processes the chunks in any order. Raises errors other than those of a clip; finished shards are kept."""
        ...


@contextmanager
def open_runner(settings: Mapping) -> Iterator[Runner]:
    """Opens the runner given in `config.extract`; its processes end with the block. Raises `UserError`."""
    text = json.dumps(settings)
    if settings["runner"] == "ray":
        with _ray(settings, text) as runner:
            yield runner
        return
    deepface.check_installed(settings)
    networks = _uses_networks(settings)
    gpus = visible_gpus(settings["device"]) if networks else []
    workers = settings["workers"] or len(gpus) or max(1, (os.cpu_count() or 1) // (CORES_PER_WORKER if networks else 1))
    if workers == 1:
        os.environ[VISIBLE_GPUS] = ",".join(gpus[:1])
        yield _LocalProcess(text)
    else:
        with _process_pool(text, workers, gpus) as runner:
            yield runner


def _uses_networks(settings: Mapping) -> bool:
    """Whether `config.extract` selects a model that can run on a GPU."""
    heavy = any(EXTRACTORS[name].extra == "extract" for name in settings["extractors"])
    return heavy or deepface.is_needed(settings)


def visible_gpus(device: str) -> list[str]:
    """Returns the GPUs that this process may use, named as in `CUDA_VISIBLE_DEVICES`; none for "cpu"."""
    if device == "cpu":
        return []
    try:
        import torch
    except ModuleNotFoundError:
        raise UserError('these models need the package torch: pip install -e ".[extract]"') from None
    found = torch.cuda.device_count()
    if device == "cuda" and not found:
        raise UserError("config.extract.device=cuda: PyTorch finds no GPU; use auto or cpu")
    named = [name for name in os.environ.get(VISIBLE_GPUS, "").split(",") if name]
    return named[:found] or [str(i) for i in range(found)]


class _LocalProcess:
    """Processes the chunks in this process."""

    def __init__(self, settings: str) -> None:
        self._settings = settings

    def describe(self) -> tuple[Schema, dict, list[str]]:
        return _describe(self._settings)

    def run(self, chunks: Sequence[Chunk], spec: RunSpec) -> Iterator[tuple[Chunk, ChunkResult]]:
        for chunk in chunks:
            yield chunk, _work(chunk, spec)


class _ProcessPool:
    """Processes the chunks in worker processes on this machine, which start when there is work."""

    def __init__(self, settings: str, executor: ProcessPoolExecutor) -> None:
        self._settings, self._executor = settings, executor

    def describe(self) -> tuple[Schema, dict, list[str]]:
        with cli.block_sigint_in_children():
            described = self._executor.submit(_describe, self._settings)
        return described.result()

    def run(self, chunks: Sequence[Chunk], spec: RunSpec) -> Iterator[tuple[Chunk, ChunkResult]]:
        with cli.block_sigint_in_children():
            futures = {self._executor.submit(_work, chunk, spec): chunk for chunk in chunks}
        for future in as_completed(futures):
            yield futures[future], future.result()


@contextmanager
def _process_pool(settings: str, workers: int, gpus: Sequence[str]) -> Iterator[_ProcessPool]:
    context = multiprocessing.get_context("spawn")
    devices = context.SimpleQueue()
    for i in range(workers):
        devices.put(gpus[i % len(gpus)] if gpus else "")
    executor = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(devices,))
    # Depends only on the number of workers, so a resumed run uses as many threads and gives the same numbers.
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    try:
        with environment(**{name: threads for name in THREADS if name not in os.environ}):
            yield _ProcessPool(settings, executor)
    except BrokenProcessPool:
        raise UserError(
            "a worker was killed, perhaps because memory ran out; run again with fewer --config.extract.workers"
        ) from None
    finally:
        # Immediately: after an error or an interrupt no worker should finish its chunk first.
        executor.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            child.terminate()


def _start_worker(devices: SimpleQueue) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ[VISIBLE_GPUS] = devices.get()


def _end_with_parent() -> None:
    """Ends this worker when its parent is killed; otherwise it would wait for work forever."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


class _RayTasks:
    """Processes the chunks as tasks on a Ray cluster, which repeats a task if its process dies."""

    MAX_RETRIES = 3

    def __init__(self, settings: str, **resources: float) -> None:
        import ray

        self._ray, self._settings = ray, settings
        options: Any = {"max_retries": self.MAX_RETRIES, "runtime_env": {"env_vars": ENVIRONMENT}, **resources}
        self._describe = ray.remote(**options)(_describe)
        self._work = ray.remote(**options)(_work)

    def describe(self) -> tuple[Schema, dict, list[str]]:
        return self._get(self._describe.remote(self._settings))

    def run(self, chunks: Sequence[Chunk], spec: RunSpec) -> Iterator[tuple[Chunk, ChunkResult]]:
        shared = self._ray.put(spec)
        waiting = {self._work.remote(chunk, shared): chunk for chunk in chunks}
        while waiting:
            (ready,), _ = self._ray.wait(list(waiting), num_returns=1)
            yield waiting.pop(ready), self._get(ready)

    def _get(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self._ray.exceptions.WorkerCrashedError:
            raise UserError(f"Ray workers died {self.MAX_RETRIES + 1} times on one chunk; see Ray's logs") from None


@contextmanager
def _ray(settings: Mapping, text: str) -> Iterator[_RayTasks]:
    try:
        os.environ.update(ENVIRONMENT)
        import ray
    except ModuleNotFoundError:
        raise UserError('--runner ray needs the package ray: pip install -e ".[ray]"') from None
    # Connects to the cluster at RAY_ADDRESS or on this machine; otherwise starts one here.
    size = {"num_cpus": settings["workers"]} if settings["workers"] and "RAY_ADDRESS" not in os.environ else {}
    ray.init(logging_level=logging.ERROR, log_to_driver=False, include_dashboard=False, **size)
    try:
        gpus = settings["device"] != "cpu" and ray.cluster_resources().get("GPU", 0) > 0
        if settings["device"] == "cuda" and not gpus:
            raise UserError("config.extract.device=cuda: the Ray cluster has no GPU; use auto or cpu")
        yield _RayTasks(text, num_cpus=1, num_gpus=int(gpus))
    finally:
        ray.shutdown()


def _describe(settings: str) -> tuple[Schema, dict, list[str]]:
    models = _load_models(settings)
    missing = [f"left out, as it cannot be loaded: {reason}" for reason in models.left_out.values()]
    return models.schema(), models.provenance(), missing


def _work(chunk: Chunk, spec: RunSpec) -> ChunkResult:
    return process_chunk(chunk, spec, _load_models(spec.settings))


@functools.cache
def _load_models(settings: str) -> Models:
    """Loads the models, once per process."""
    return Models(json.loads(settings))
