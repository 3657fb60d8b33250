"""Who does the chunks: this process, several on this machine, or a Ray cluster. All call the same function.

A runner first describes what its models make (`describe`; only then is the dataset's schema known) and then does
chunks (`run`). Each process loads the models once, those that describe them included.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Protocol

from extract import deepface
from extract.frameworks import ENVIRONMENT
from extract.models import Models, use_networks
from extract.pipeline import Chunk, Done, Job, process_chunk
from slf_common import cli
from slf_common.errors import UserError
from tfrecords.schema import Schema

RUNNERS = ("local", "ray")
DEVICES = ("auto", "cpu", "cuda")
# Read by the numeric libraries when a process loads them.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
CORES = 4  # of a CPU for one worker's networks: more processes are no faster, and each holds all models
VISIBLE = "CUDA_VISIBLE_DEVICES"


class Runner(Protocol):
    """Where the work is done."""

    def describe(self) -> tuple[Schema, dict]:
        """The schema that the models make, and where faces and attributes come from."""
        ...

    def run(self, chunks: Sequence[Chunk], job: Job) -> Iterator[tuple[Chunk, Done]]:
        """Does the chunks, in any order. An error that is no clip's own is raised; finished shards stay."""
        ...


@contextmanager
def open_runner(settings: Mapping) -> Iterator[Runner]:
    """The runner that `config.extract` names; its processes end with the block. Raises `UserError`."""
    text = json.dumps(settings)
    if settings["runner"] == "ray":
        with _ray(settings, text) as runner:
            yield runner
        return
    deepface.check_installed(settings)
    networks = use_networks(settings)
    gpus = visible_gpus(settings["device"]) if networks else []
    workers = settings["workers"] or len(gpus) or max(1, (os.cpu_count() or 1) // (CORES if networks else 1))
    if workers == 1:
        os.environ[VISIBLE] = ",".join(gpus[:1])
        yield _Here(text)
    else:
        with _processes(text, workers, gpus) as runner:
            yield runner


def visible_gpus(device: str) -> list[str]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them; none for "cpu"."""
    if device == "cpu":
        return []
    try:
        import torch
    except ModuleNotFoundError:
        raise UserError('these models need the package torch: pip install -e ".[extract]"') from None
    found = torch.cuda.device_count()
    if device == "cuda" and not found:
        raise UserError("config.extract.device=cuda: PyTorch finds no GPU here; give auto or cpu")
    named = [name for name in os.environ.get(VISIBLE, "").split(",") if name]
    return named[:found] or [str(i) for i in range(found)]


class _Here:
    """This process alone."""

    def __init__(self, settings: str) -> None:
        self._settings = settings

    def describe(self) -> tuple[Schema, dict]:
        return _describe(self._settings)

    def run(self, chunks: Sequence[Chunk], job: Job) -> Iterator[tuple[Chunk, Done]]:
        for chunk in chunks:
            yield chunk, _work(chunk, job)


class _Processes:
    """Processes on this machine, started as there is work for them."""

    def __init__(self, settings: str, executor: ProcessPoolExecutor) -> None:
        self._settings, self._executor = settings, executor

    def describe(self) -> tuple[Schema, dict]:
        with cli.deaf_children():
            described = self._executor.submit(_describe, self._settings)
        return described.result()

    def run(self, chunks: Sequence[Chunk], job: Job) -> Iterator[tuple[Chunk, Done]]:
        with cli.deaf_children():
            futures = {self._executor.submit(_work, chunk, job): chunk for chunk in chunks}
        for future in as_completed(futures):
            yield futures[future], future.result()


@contextmanager
def _processes(settings: str, workers: int, gpus: Sequence[str]) -> Iterator[_Processes]:
    # From the number of workers alone: as many threads give the same numbers in a run that is taken up again.
    for name in THREADS:
        os.environ.setdefault(name, str(max(1, (os.cpu_count() or 1) // workers)))
    context = multiprocessing.get_context("spawn")
    devices = context.SimpleQueue()
    for i in range(workers):
        devices.put(gpus[i % len(gpus)] if gpus else "")
    executor = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(devices,))
    try:
        yield _Processes(settings, executor)
    except BrokenProcessPool:
        raise UserError(
            "a worker was killed, perhaps for want of memory; run again with fewer --config.extract.workers"
        ) from None
    finally:
        # At once: after a mistake or an interrupt none should finish its chunk first.
        executor.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            child.terminate()


def _start_worker(devices: multiprocessing.SimpleQueue) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ[VISIBLE] = devices.get()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


class _Ray:
    """Tasks on a Ray cluster; a task whose process dies is done again by another."""

    RETRIES = 3

    def __init__(self, settings: str, **resources: float) -> None:
        import ray

        self._ray, self._settings = ray, settings
        options = {"max_retries": self.RETRIES, "runtime_env": {"env_vars": ENVIRONMENT}, **resources}
        self._describe = ray.remote(**options)(_describe)
        self._work = ray.remote(**options)(_work)

    def describe(self) -> tuple[Schema, dict]:
        return self._get(self._describe.remote(self._settings))

    def run(self, chunks: Sequence[Chunk], job: Job) -> Iterator[tuple[Chunk, Done]]:
        shared = self._ray.put(job)
        waiting = {self._work.remote(chunk, shared): chunk for chunk in chunks}
        while waiting:
            (ready,), _ = self._ray.wait(list(waiting), num_returns=1)
            yield waiting.pop(ready), self._get(ready)

    def _get(self, reference: object) -> object:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self._ray.exceptions.WorkerCrashedError:
            raise UserError(f"a Ray worker died {self.RETRIES + 1} times over one chunk; see Ray's own logs") from None


@contextmanager
def _ray(settings: Mapping, text: str) -> Iterator[_Ray]:
    try:
        os.environ.update(ENVIRONMENT)
        import ray
    except ModuleNotFoundError:
        raise UserError('--runner ray needs the package ray: pip install -e ".[ray]"') from None
    # The cluster that RAY_ADDRESS names or that runs here; else a new one on this machine.
    size = {"num_cpus": settings["workers"]} if settings["workers"] and "RAY_ADDRESS" not in os.environ else {}
    ray.init(logging_level="error", log_to_driver=False, include_dashboard=False, **size)
    try:
        gpus = settings["device"] != "cpu" and ray.cluster_resources().get("GPU", 0) > 0
        if settings["device"] == "cuda" and not gpus:
            raise UserError("config.extract.device=cuda: the Ray cluster has no GPU; give auto or cpu")
        yield _Ray(text, num_cpus=1, num_gpus=int(gpus))
    finally:
        ray.shutdown()


def _describe(settings: str) -> tuple[Schema, dict]:
    models = _models(settings)
    return models.schema(), models.provenance()


def _work(chunk: Chunk, job: Job) -> Done:
    return process_chunk(chunk, job, _models(job.settings))


@functools.cache
def _models(settings: str) -> Models:
    """The models, loaded once in each process."""
    return Models(json.loads(settings))
