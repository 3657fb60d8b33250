"""Imports librosa, whose functions numba compiles on import, with a compilation cache that all processes share.

numba numbers its cache files without a lock: processes that compile at the same time overwrite each other's files, and
a function loaded from such a cache crashes every later process with a segmentation fault. Therefore numba's default
cache is not used. This cache is filled by one process while the others wait; afterwards it is read-only, since each
process uses a copy. Modules that librosa imports later, on first use, compile into the process's own copy.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
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

# What NeMo uses. Not librosa.core.pitch: numba cannot cache its stencil and compiles it for 6 s each time.
MODULES = ("librosa.core.spectrum", "librosa.filters", "librosa.util.utils")


def import_librosa() -> ModuleType:
    """Imports librosa with its compiled functions. Call it before anything else in the process imports librosa.

    The cache is in `$NUMBA_CACHE_DIR`, or else in `~/.cache/slf_jax/numba`; if that is not writable, this process
    compiles into a temporary folder. Raises `ModuleNotFoundError` if librosa is not installed.
    """
    import numba

    root = _root()
    shared = root / _versions()
    own = _own_cache(root)
    with contextlib.ExitStack() as stack:
        # Not the environment variable, which child processes inherit. When it next compiles after a change of a
        # variable NUMBA_*, numba resets this setting: so it has to see the present ones first.
        numba.config.reload_config()
        numba.config.CACHE_DIR = own  # type: ignore[attr-defined]  # numba sets its options at run time
        if not shared.exists():
            stack.enter_context(_locked(shared.with_suffix(".lock")))
        compiled = shared.exists()
        if compiled:
            shutil.copytree(shared, own, dirs_exist_ok=True)
        import librosa

        for name in MODULES:
            importlib.import_module(name)
        if not compiled:
            os.rename(shutil.copytree(own, f"{own}.complete"), shared)
    return librosa


@functools.cache
def _own_cache(root: Path) -> str:
    """Creates a folder for this process, which removes it when it ends."""
    folder = tempfile.mkdtemp(dir=root)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _versions() -> str:
    """Returns a name for these versions, this librosa and this host (file locks may not work across hosts)."""
    installed = [distribution(name) for name in ("librosa", "numba", "llvmlite", "numpy")]
    sources = [sys.version, platform.node(), platform.machine(), str(installed[0].locate_file(""))]
    sources += [f"{each.name} {each.version}" for each in installed]
    sources += MODULES
    return hashlib.sha256("\n".join(sources).encode()).hexdigest()[:16]


def _root() -> Path:
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: the user has no home directory
        root = Path(os.environ.get("NUMBA_CACHE_DIR") or Path.home() / ".cache" / "slf_jax" / "numba")
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            return root
    # Not a fixed name under /tmp, where another user could put code for this process to load.
    return Path(tempfile.mkdtemp(prefix="slf_jax-numba-"))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed, also if the process is killed
        yield
