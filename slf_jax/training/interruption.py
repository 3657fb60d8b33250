"""Interruptions of training: stop signals, and clear errors for exhausted memory or disk space."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

import jax
import ml_collections

from slf_common import interrupt
from slf_common.errors import UserError


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Yields a function that returns whether SIGTERM or Ctrl-C has arrived; another Ctrl-C ends the process.

    Python runs signal handlers between bytecodes of the main thread, which may be compiling for minutes. Therefore a
    thread reads signals from a pipe, to which the interpreter writes them on arrival.
    """
    received: list[int] = []
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = {s: signal.signal(s, lambda *_: None) for s in (signal.SIGTERM, signal.SIGINT)}
    wakeup = signal.set_wakeup_fd(writer)
    thread = threading.Thread(target=_listen, args=(reader, received), daemon=True)
    thread.start()
    try:
        yield lambda: bool(received)
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writer)
        thread.join()
        os.close(reader)


def _listen(reader: int, received: list[int]) -> None:
    """Appends signals from the pipe until it is closed; a Ctrl-C that is not the first signal ends the process."""
    for number in iter(lambda: os.read(reader, 1), b""):
        if number[0] == signal.SIGINT and received:
            print("\ninterrupted; the last checkpoint is intact", file=sys.stderr, flush=True)
            os._exit(interrupt.STATUS)
        if number[0] in (signal.SIGTERM, signal.SIGINT):
            received.append(number[0])
            print("\nstopping after this step; press Ctrl-C to end at once", file=sys.stderr, flush=True)


@contextlib.contextmanager
def explain_resource_errors(config: ml_collections.ConfigDict) -> Iterator[None]:
    """Turns exhausted device memory or disk space into a `UserError`."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            "out of memory: lower config.train.STAGE.batch_size, raise config.train.STAGE.accumulate, or set "
            "config.model.STAGE.remat=true"
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            raise
        raise UserError(
            f"{config.workdir}: cannot be written to ({error.strerror}); the last checkpoint is intact. Free some "
            "space there, then run the same command again"
        ) from error
