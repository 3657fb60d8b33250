"""What the pretrained models of all frameworks share: where their weights come from, on which device they run,
and one clear line where something is missing. Imports none of them by itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from slf_common import cli
from slf_common.errors import UserError
from slf_common.files import local_path

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

# No telemetry and no chatter; read when a framework is imported.
ENVIRONMENT = {
    "PYANNOTE_METRICS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_VERBOSITY": "error",
    "WANDB_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "DEEPFACE_LOG_LEVEL": "40",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
# Clips whose sound is in one forward pass: a GPU wants many, a CPU is no faster and only takes more memory.
CLIPS = {"cpu": 1, "cuda": 16}
# Of malloc.h: the most blocks that have memory of their own, and how much may be free before it is given back.
M_MMAP_MAX, M_TRIM_THRESHOLD = -4, -1
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, frameworks are imported and load models without a word; errors pass through."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with cli.quiet():
        yield


def load_weights(name: str, weights: str, loader: Callable[[str], T]) -> T:
    """What `loader` makes of `weights`, a local path or the id of a model on the Hugging Face hub.

    The loader is the framework's own, and so is the download. A gated model takes its token from the environment
    variable `HF_TOKEN`. Raises `UserError` where weights are missing or are not what the framework expects.
    """
    setting = f"config.extract.{name}.weights"
    local = local_path(weights)
    if not local.exists() and not HUB_ID.fullmatch(weights):
        raise UserError(f"{name}: no weights at {local}; {setting} takes a path or a hub id")
    try:
        with quiet():
            return loader(str(local) if local.exists() else weights)
    except Exception as error:  # each framework raises its own
        if local.exists():
            raise UserError(f"{name}: {local} cannot be loaded ({_in_short(error)}); see {setting}") from error
        raise UserError(_hub_failed(name, weights, setting, error)) from error


def _hub_failed(name: str, weights: str, setting: str, error: Exception) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if isinstance(error, (GatedRepoError, RepositoryNotFoundError)):
        return (
            f"{name}: the hub does not give {weights!r}: accept its conditions at https://hf.co/{weights} and put "
            f"your token into the environment variable HF_TOKEN, or correct {setting}"
        )
    return (
        f"{name}: no weights {weights!r} in {constants.HF_HUB_CACHE}, nor could they be downloaded "
        f"({_in_short(error)}); where there is a network: hf download {weights}; or set {setting} to a local path"
    )


def _in_short(error: Exception) -> str:
    """The error's type and the beginning of its first line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:150]}"


def digest(module: torch.nn.Module) -> str:
    """SHA-256, its first 16 digits, of a network's parameters and buffers in the order of their names."""
    state = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        state.update(name.encode())
        state.update(value.cpu().contiguous().numpy().data)
    return state.hexdigest()[:16]


def digest_file(path: Path) -> str:
    """SHA-256, its first 16 digits, of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def device() -> str:
    """`cuda` or `cpu`: what `runners` lets this process see."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def by_passes(forward: Callable[[np.ndarray], np.ndarray], waves: np.ndarray) -> np.ndarray:
    """What `forward` makes of clips [N, samples], given as many at a time as suit the device."""
    most = CLIPS[device()]
    return np.concatenate([forward(waves[i : i + most]) for i in range(0, len(waves), most)])


def keep_memory() -> None:
    """Has this process keep the memory that it frees, for the next forward pass.

    glibc gives large blocks back at once, and the kernel then clears every page of them anew: a quarter of the time
    that the speaker embedders take on a CPU. Does nothing where the C library has no such setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
