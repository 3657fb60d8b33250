"""Conversion of the errors that decoders raise."""

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
def limited_memory():
    """Limits this process to little more memory than it uses now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + errors.SPARE_MEMORY // 4, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_a_memory_error_is_converted_only_if_the_machine_has_memory_left():
    """Otherwise the file is not to blame."""
    with limited_memory(), pytest.raises(MemoryError):
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


def test_a_user_error_can_be_pickled():
    assert str(pickle.loads(pickle.dumps(UserError("a.mp4: gone")))) == "a.mp4: gone"
