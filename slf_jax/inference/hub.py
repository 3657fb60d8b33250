"""Exported systems on the Hugging Face hub: `hf://owner/name`, or `hf://owner/name@revision`."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

from slf_common.errors import UserError
from slf_jax.inference.exported import CARD, CONFIG, EXAMPLES, WEIGHTS

SCHEME = "hf://"
SOURCE = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


def is_hub(source: str | Path) -> bool:
    """Whether a source is on the hub."""
    return str(source).startswith(SCHEME)


def download(source: str) -> Path:
    """Returns the folder of an exported system, downloaded unless it is in the cache. Raises `UserError`."""
    match = SOURCE.fullmatch(source)
    if not match:
        raise UserError(f"{source}: must be hf://OWNER/NAME, or hf://OWNER/NAME@REVISION")
    library = _library()
    try:
        folder = library.snapshot_download(
            match["repo"], revision=match["revision"], allow_patterns=[WEIGHTS, CONFIG, CARD, EXAMPLES]
        )
    except Exception as error:  # no network, no such repository, no access: the type depends on the transport
        raise UserError(
            f"{source}: cannot be downloaded ({_first_line(error)}); a token is read from HF_TOKEN"
        ) from None
    if not (Path(folder) / WEIGHTS).exists():
        raise UserError(f"{source}: holds no exported system ({WEIGHTS} is missing)")
    return Path(folder)


def upload(folder: Path, name: str) -> str:
    """Uploads an exported folder to the hub as `owner/name`; returns its address. Raises `UserError`."""
    library = _library()
    try:
        address = library.create_repo(name, exist_ok=True)
        library.upload_folder(repo_id=name, folder_path=folder, allow_patterns=[WEIGHTS, CONFIG, CARD, EXAMPLES])
    except Exception as error:  # as above
        raise UserError(
            f"--push {name}: cannot be uploaded ({_first_line(error)}); the export is in {folder}. A token with write "
            "access is read from HF_TOKEN"
        ) from None
    return str(address)


def _library() -> ModuleType:
    try:
        import huggingface_hub
    except ModuleNotFoundError:
        raise UserError('the hub needs the package huggingface_hub: pip install -e ".[hub]"') from None
    return huggingface_hub


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:150]}"
