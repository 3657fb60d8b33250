"""What becomes of the errors that decoders raise."""

import pickle
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest

from slf_common import errors
from slf_common.errors import UserError, decoding


class DamagedError(Exception):
    pass


@contextmanager
def no_memory_left():
    """This process can have little more memory than it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + errors.SPARE_MEMORY // 4, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_lack_of_memory_is_the_machines_fault_and_an_absurd_size_the_files():
    """A `MemoryError` is the file's only where the machine has memory left."""
    with no_memory_left(), pytest.raises(MemoryError):
        with decoding(DamagedError, "damaged"):
            bytearray(errors.SPARE_MEMORY)
    with pytest.raises(DamagedError, match=r"damaged \(MemoryError\)"):
        with decoding(DamagedError, "damaged"):
            bytearray(1 << 60)


@pytest.mark.parametrize(
    "error, text",
    [
        (OSError(5, "Input/output error"), "damaged (Input/output error)"),
        (ValueError("two\nlines"), "damaged (ValueError: two lines)"),
        (KeyError(), "damaged (KeyError)"),
        (RuntimeError("bad <_io.BytesIO object at 0x7f00>"), "damaged (RuntimeError)"),
    ],
)
def test_the_reason_is_one_line_and_the_same_in_every_run(error, text):
    with pytest.raises(DamagedError) as found, decoding(DamagedError, "damaged"):
        raise error
    assert str(found.value) == text and found.value.__cause__ is error


def test_a_user_error_reaches_other_processes_whole():
    assert str(pickle.loads(pickle.dumps(UserError("a.mp4: gone")))) == "a.mp4: gone"
