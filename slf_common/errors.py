"""The error type shown to users, and a guard that converts the errors of third-party decoders."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

SPARE_MEMORY = 256 << 20  # bytes; a process that can still allocate this much is not out of memory


class UserError(Exception):
    """An error that the user can fix. The message is one line: what is wrong, where, and what to do. Exit status 2."""


@contextmanager
def decoding(kind: type[Exception], what: str) -> Iterator[None]:
    """Converts every exception of a decoder (Pillow, PyAV) to `kind` with the message `what (reason)`.

    Wrap only calls of the decoder: with damaged files it can raise almost anything (struct.error, TypeError,
    SyntaxError, RuntimeError). A `MemoryError` passes through if the machine is out of memory; otherwise a damaged
    header requested too much.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, MemoryError) and _memory_is_short():
            raise
        raise kind(f"{what} ({_explain(error)})") from error


def _explain(error: Exception) -> str:
    """The reason in one line, without object addresses, so that it is the same in every run."""
    if text := getattr(error, "strerror", None):
        return text
    name, text = type(error).__name__, " ".join(str(error).split())
    return name if not text or " at 0x" in text else f"{name}: {text[:100]}"


def _memory_is_short() -> bool:
    try:
        bytearray(SPARE_MEMORY)
    except MemoryError:
        return True
    return False
