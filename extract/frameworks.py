"""Running pretrained models: quiet imports, the device, the batch size, memory. Imports no framework by itself."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator

import numpy as np

from slf_common import cli

# Turns off telemetry and log messages; read when a framework is imported.
ENVIRONMENT = {
    "PYANNOTE_METRICS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_VERBOSITY": "error",
    "WANDB_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "DEEPFACE_LOG_LEVEL": "40",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
# Clips in one forward pass: a GPU needs many; on a CPU more clips take more memory and save no time.
BATCH_SIZES = {"cpu": 1, "cuda": 16}
# From malloc.h: the number of blocks that are mapped separately, and the free memory at which it is returned.
M_MMAP_MAX, M_TRIM_THRESHOLD = -4, -1


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppresses the output of frameworks while they are imported and load models; errors propagate."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with cli.quiet():
        yield


def device() -> str:
    """Returns `cuda` or `cpu`, depending on the GPUs that `extract.runners` makes visible to this process."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def apply_in_batches(forward: Callable[[np.ndarray], np.ndarray], waves: np.ndarray) -> np.ndarray:
    """Applies `forward` to clips [N, samples] in batches of the device's size and concatenates the results."""
    size = BATCH_SIZES[device()]
    return np.concatenate([forward(waves[i : i + size]) for i in range(0, len(waves), size)])


def keep_memory() -> None:
    """Makes this process keep freed memory for the next forward pass.

    By default glibc returns large blocks to the kernel, which clears their pages on the next allocation; this takes a
    quarter of the speaker embedders' time on a CPU. Does nothing where the C library has no such setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
