"""The cache of librosa's compiled functions, with real processes and a real, cold cache."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from recordings import contents

from extract import librosa_cache

ROOT = Path(__file__).parents[2]
USE = """
from extract.librosa_cache import import_librosa
import numba, numpy as np, os, pathlib
os.environ["NUMBA_NUM_THREADS"] = "1"  # numba then reads its settings again
librosa = import_librosa()
noise = np.random.default_rng(0).normal(size=16_000).astype(np.float32)
librosa.stft(noise), librosa.filters.mel(sr=16_000, n_fft=512, n_mels=80)
print(sum(path.is_file() for path in pathlib.Path(numba.config.CACHE_DIR).rglob("*")), "files used by NeMo")
print(librosa.feature.zero_crossing_rate(y=noise).shape, librosa.util.localmax(noise).sum())
"""


def start(cache: Path) -> subprocess.Popen:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", USE], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow
def test_concurrent_processes_compile_once_and_leave_a_valid_cache(tmp_path):
    """Two processes start with a cold cache; a third uses the functions that they compiled (fault 1)."""
    together = [start(tmp_path) for _ in range(2)]
    outputs = [(process.communicate(timeout=400)[0], process.returncode) for process in together]
    assert {status for _, status in outputs} == {0} and len({text for text, _ in outputs}) == 1, outputs
    (shared,) = (path for path in tmp_path.iterdir() if path.is_dir())
    compiled = contents(shared)
    assert any(name.endswith(".nbc") for name in compiled)
    # What NeMo uses compiles nothing else, in any process.
    assert outputs[0][0].startswith(f"{len(compiled)} files used"), outputs
    late = start(tmp_path)
    assert (late.communicate(timeout=400)[0], late.returncode) == outputs[0]
    assert contents(shared) == compiled


def test_without_a_writable_folder_each_process_has_its_own_cache(monkeypatch):
    """No home directory, a read-only one, or a file in its path (fault 1)."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/proc/none")
    first, second = librosa_cache._root(), librosa_cache._root()
    assert first != second and first.is_dir() and second.is_dir()
    first.rmdir(), second.rmdir()
