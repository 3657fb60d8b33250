"""Loading pretrained weights from a local path or the Hugging Face hub, with one-line errors, and their digests."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from extract.frameworks import quiet
from slf_common.errors import UserError
from slf_common.files import local_path

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def load_weights(name: str, weights: str, loader: Callable[[str], T]) -> T:
    """Returns `loader(weights)`, where `weights` is a local path or the id of a model on the Hugging Face hub.

    The loader is the framework's own and downloads missing weights. The token for a gated model is read from the
    environment variable `HF_TOKEN`. Raises `UserError` if the weights are missing or have the wrong format.
    """
    setting = f"config.extract.{name}.weights"
    local = local_path(weights)
    if not local.exists() and not HUB_ID.fullmatch(weights):
        raise UserError(f"{name}: no weights at {local}; {setting} must be a path or a hub id")
    try:
        with quiet():
            return loader(str(local) if local.exists() else weights)
    except Exception as error:  # each framework raises its own
        if local.exists():
            raise UserError(f"{name}: {local} cannot be loaded ({_first_line(error)}); see {setting}") from error
        raise UserError(_explain_hub_error(name, weights, setting, error)) from error


def _explain_hub_error(name: str, weights: str, setting: str, error: Exception) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if isinstance(error, (GatedRepoError, RepositoryNotFoundError)):
        return (
            f"{name}: the hub denies access to {weights!r}: accept its conditions at https://hf.co/{weights} and set "
            f"the environment variable HF_TOKEN to your token, or correct {setting}"
        )
    return (
        f"{name}: no weights {weights!r} in {constants.HF_HUB_CACHE}, and the download failed "
        f"({_first_line(error)}); on a machine with a network: hf download {weights}; or set {setting} to a local path"
    )


def _first_line(error: Exception) -> str:
    """The error's type and the beginning of its first line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:150]}"


def digest(module: torch.nn.Module) -> str:
    """Returns the first 16 hex digits of the SHA-256 of a network's parameters and buffers, sorted by name."""
    state = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        state.update(name.encode())
        state.update(value.cpu().contiguous().numpy().data)
    return state.hexdigest()[:16]


def digest_file(path: Path) -> str:
    """Returns the first 16 hex digits of a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
