"""Who does the chunks: this process, or several on this machine."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from tqdm import tqdm

from extract.extractors import Extractor, load
from extract.pipeline import Chunk, Job, is_done, process_chunk
from tfrecords.cli import UserError

# Read by the numeric libraries when a process loads them.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def run_chunks(chunks: Sequence[Chunk], job: Job, workers: int) -> None:
    """Does the chunks that are not done yet, with a progress bar in clips.

    `workers`: processes; 0 is one for each core, 1 this process alone. An error that is no clip's own stops the
    run and is raised; shards that are finished stay. `UserError` if a worker is killed.
    """
    pending = [chunk for chunk in chunks if not is_done(job, chunk)]
    if not pending:
        return
    workers = min(workers or os.cpu_count() or 1, len(pending))
    with _progress(chunks, pending) as report:
        if workers == 1:
            for chunk in pending:
                report(chunk, _work(chunk, job))
        else:
            _run_in_processes(pending, job, workers, report)


@contextmanager
def _progress(chunks: Sequence[Chunk], pending: Sequence[Chunk]) -> Iterator[Callable[[Chunk, int], None]]:
    total = sum(len(chunk.clips) for chunk in chunks)
    done = total - sum(len(chunk.clips) for chunk in pending)
    failed = 0
    with tqdm(total=total, initial=done, unit="clip", desc="extract") as bar:

        def report(chunk: Chunk, failures: int) -> None:
            nonlocal failed
            failed += failures
            bar.set_postfix(failed=failed, refresh=False)
            bar.update(len(chunk.clips))

        yield report


def _run_in_processes(chunks: Sequence[Chunk], job: Job, workers: int, report: Callable[[Chunk, int], None]) -> None:
    for name in THREADS:
        os.environ.setdefault(name, str(max(1, (os.cpu_count() or 1) // workers)))
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers, context, initializer=_start_worker)
    try:
        futures = {executor.submit(_work, chunk, job): chunk for chunk in chunks}
        for future in as_completed(futures):
            report(futures[future], future.result())
    except BrokenProcessPool:
        raise UserError(
            "a worker was killed, perhaps for want of memory; run again with fewer --config.extract.workers"
        ) from None
    finally:
        _stop(executor)


def _stop(executor: ProcessPoolExecutor) -> None:
    """Ends the workers at once; after a mistake or an interrupt none should finish its chunk first."""
    executor.shutdown(wait=False, cancel_futures=True)
    for child in multiprocessing.active_children():
        child.terminate()


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops us
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _work(chunk: Chunk, job: Job) -> int:
    return process_chunk(chunk, job, _loaded(job.extractors))


@functools.cache
def _loaded(names: tuple[str, ...]) -> list[Extractor]:
    """The extractors, loaded once in each process."""
    return load(names)
