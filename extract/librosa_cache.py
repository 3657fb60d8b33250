"""librosa, whose functions numba compiles on import: once for all processes.

numba numbers the files of its cache without a lock: processes that compile at the same time overwrite each other's
files, and a function loaded from such a cache ends every later process with a segmentation fault. So the cache beside
librosa is not used. Ours is filled by one process while the others wait; then nobody writes to it any more, as each
process works on a copy.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType

# Those that compile on import.
COMPILED = ("librosa.core.spectrum", "librosa.core.pitch", "librosa.filters", "librosa.feature")


def import_librosa() -> ModuleType:
    """librosa, its compiled functions loaded. Call it before anything else in the process imports librosa.

    The cache lies in `$NUMBA_CACHE_DIR`, or else in `~/.cache/slf_jax/numba`; where that cannot be written to, the
    process compiles for itself. Raises `ModuleNotFoundError` where librosa is not installed.
    """
    import numba

    root = _root()
    shared = root / _versions()
    with tempfile.TemporaryDirectory(dir=root) as own, contextlib.ExitStack() as stack:
        # Not the environment variable: child processes would look for their cache inside this one.
        numba.config.CACHE_DIR = own
        if not shared.exists():
            stack.enter_context(_locked(shared.with_suffix(".lock")))
        compiled = shared.exists()
        if compiled:
            shutil.copytree(shared, own, dirs_exist_ok=True)
        import librosa

        for name in COMPILED:
            importlib.import_module(name)
        if not compiled:
            os.rename(shutil.copytree(own, f"{own}.complete"), shared)
    return librosa


def _versions() -> str:
    """A name for these versions, this librosa and this host (file locks may not hold across hosts)."""
    installed = [distribution(name) for name in ("librosa", "numba", "llvmlite", "numpy")]
    made_from = [sys.version, platform.node(), platform.machine(), str(installed[0].locate_file(""))]
    made_from += [f"{each.name} {each.version}" for each in installed]
    return hashlib.sha256("\n".join(made_from).encode()).hexdigest()[:16]


def _root() -> Path:
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: a user without a home
        root = Path(os.environ.get("NUMBA_CACHE_DIR") or Path.home() / ".cache" / "slf_jax" / "numba")
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            return root
    # Not a fixed name under /tmp, where another user could place code for us to load.
    return Path(tempfile.mkdtemp(prefix="slf_jax-numba-"))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed, also by a kill
        yield
