"""Systems on the Hugging Face hub: downloading `hf://owner/name`, uploading an export."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

from slf_common.errors import UserError
from slf_jax.inference.exported import CONFIG, FILES, WEIGHTS

PREFIX = "hf://"
NAME = r"[\w-][\w.-]*/[\w-][\w.-]*"
SOURCE = re.compile(rf"{PREFIX}({NAME})(?:@([\w./-]+))?")


def is_hub(source: str | Path) -> bool:
    """Whether a source of a system is on the hub."""
    return str(source).startswith(PREFIX)


def parse(source: str) -> tuple[str, str | None]:
    """Parses `hf://owner/name` or `hf://owner/name@revision` to id and revision. Raises `UserError`."""
    if (match := SOURCE.fullmatch(source)) is None:
        raise UserError(f"{source}: must be {PREFIX}owner/name, or {PREFIX}owner/name@revision")
    return match[1], match[2]


def download(source: str) -> Path:
    """Downloads the files of an exported system, or finds them in the hub's cache; returns their folder.

    Raises `UserError` if they cannot be downloaded.
    """
    name, revision = parse(source)
    library = _library(source)
    try:
        folder = Path(library.snapshot_download(name, revision=revision, allow_patterns=list(FILES)))
    except Exception as error:  # of the library, its HTTP client or the system
        raise UserError(f"{source}: {_explain(error)}") from error
    if missing := [name for name in (CONFIG, WEIGHTS) if not (folder / name).exists()]:
        raise UserError(f"{source}: not an exported SLF-JAX system, or an incomplete one: {missing[0]} is missing")
    return folder


def check_push(name: str) -> None:
    """Raises `UserError` if an upload to `owner/name` could not start: extra, name or token."""
    if not re.fullmatch(NAME, name):
        raise UserError(f"--push {name}: must be owner/name, the id of a model on the hub")
    if not _library(f"--push {name}").get_token():
        raise UserError(f"--push {name}: no token; set the environment variable HF_TOKEN to one that may write there")


def push(folder: Path, name: str, private: bool) -> str:
    """Uploads an export; creates the repository if there is none. Returns its address. Raises `UserError`."""
    api = _library(f"--push {name}").HfApi(library_name="slf-jax")
    try:
        url = api.create_repo(name, private=private or None, exist_ok=True)
        api.upload_folder(
            repo_id=name, folder_path=folder, allow_patterns=list(FILES), commit_message="Upload an SLF-JAX system"
        )
    except Exception as error:
        raise UserError(f"--push {name}: {_explain(error)}; the export itself is complete: {folder}") from error
    return str(url)


def _library(what: str) -> ModuleType:
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(f'{what}: needs huggingface_hub: pip install -e ".[hub]"') from None
    return huggingface_hub


def _explain(error: Exception) -> str:
    """The reason and what to do, in one line."""
    from huggingface_hub import errors

    reason = (str(error).strip().splitlines() or [""])[0][:200]
    if isinstance(error, errors.RepositoryNotFoundError):  # also gated ones
        return "unknown, private or gated; check the name, and set HF_TOKEN to a token with access to it"
    if isinstance(error, errors.RevisionNotFoundError):
        return "no such revision"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return "not in the cache, and the hub cannot be reached; check the network, and HF_HUB_OFFLINE"
    if isinstance(error, errors.HfHubHTTPError) and error.response is not None:
        return f"the hub refuses ({error.response.status_code}: {reason}); check the name and the token in HF_TOKEN"
    return f"the hub cannot be used ({type(error).__name__}: {reason}); check the network"
