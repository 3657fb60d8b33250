"""The one error that users see, and what to make of errors that other people's decoders raise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

SPARE_MEMORY = 256 << 20  # bytes; a machine that still has as many is not short of memory


class UserError(Exception):
    """A mistake the user can mend: one line that says what, where and what to do. Exit status 2."""


@contextmanager
def decoding(kind: type[Exception], what: str) -> Iterator[None]:
    """Around calls of a decoder (Pillow, PyAV), and nothing else: whatever it raises becomes a `kind`, `what (reason)`.

    Damaged files make decoders raise almost anything: struct.error, TypeError, SyntaxError, RuntimeError and so on.
    A `MemoryError` passes where this machine is short of memory; else a damaged header asked for too much.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, MemoryError) and _memory_is_short():
            raise
        raise kind(f"{what} ({_explain(error)})") from error


def _explain(error: Exception) -> str:
    """The reason in one line, the same in every run: no addresses of objects."""
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
