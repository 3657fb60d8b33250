"""Conversion of the errors that decoders raise."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from slf_common.errors import UserError, decoding

ROOT = Path(__file__).parents[2]


class DamagedError(Exception):
    pass


OUT_OF_MEMORY = """
import resource
from pathlib import Path
from slf_common import errors
from slf_common.errors import decoding

pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + errors.SPARE_MEMORY // 4
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    with decoding(ValueError, "damaged"):
        bytearray(errors.SPARE_MEMORY)
except MemoryError:
    print("passed through")
"""


def test_a_memory_error_is_converted_only_if_the_machine_has_memory_left():
    """Otherwise the file is not to blame. In a process of its own: this one may have freed memory to reuse."""
    done = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "passed through\n", done.stderr
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
