"""Exported systems: the EMA weights as safetensors, and config, features and digests as JSON, in one folder.

Such a folder can be copied, published and loaded like a run directory. It holds no paths of the machine that trained
the system.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.flax
from flax.traverse_util import flatten_dict, unflatten_dict

from slf_common.errors import UserError
from slf_common.files import URL, write_atomically
from slf_jax.training.checkpoints import Meta, digest

WEIGHTS, CONFIG, CARD, EXAMPLES = "model.safetensors", "config.json", "README.md", "examples.jpg"
PROGRAM = "sampler.jax_export"  # see inference/program.py
FILES = (WEIGHTS, CONFIG, CARD, EXAMPLES, PROGRAM)
FORMAT = 1
DTYPES = ("float32", "bfloat16")
STORED = {"F32": np.dtype(np.float32), "BF16": np.dtype(jnp.bfloat16)}  # by their names in safetensors
# Settings about one machine, which are emptied.
MACHINE = (
    "workdir", "init_from", "coordinator", "distill.teacher", "data.dir", "extract.videos", "extract.out",
    "extract.attributes", "extract.deepface.home",
)  # fmt: skip


def software() -> str:
    """Name and version of this package; without the version if it runs from a folder and is not installed."""
    try:
        return f"slf-jax {version('slf-jax')}"
    except PackageNotFoundError:
        return "slf-jax"


def is_exported(folder: Path) -> bool:
    """Whether a folder holds an exported system, maybe a damaged one."""
    return any((folder / name).is_file() for name in (WEIGHTS, CONFIG)) and not (folder / "checkpoints").exists()


def write(folder: Path, meta: Meta, params: Mapping[str, Any], steps: Mapping[str, int], dtype: str) -> None:
    """Writes weights and config.

    Args:
      params, steps: by stage, EMA parameters and the training step that they are from.
      dtype: one of `DTYPES`; bfloat16 halves the size and rounds the weights.
    """
    stored = {name: jax.tree.map(lambda x: jnp.asarray(x, dtype), tree) for name, tree in params.items()}
    loaded = {name: jax.tree.map(lambda x: np.asarray(x, np.float32), tree) for name, tree in stored.items()}
    stages = {name: {"step": steps[name], "digest": digest(tree)} for name, tree in loaded.items()}
    config = {"format": FORMAT, "software": software(), "dtype": dtype, "stages": stages, **portable(meta)}
    write_atomically(folder / WEIGHTS, safetensors.flax.save(flatten_dict(stored, sep="/")))
    write_atomically(folder / CONFIG, json.dumps(config).encode())


def read(folder: Path) -> tuple[Meta, dict]:
    """Reads the metadata of a system, and step and digest by stage. Raises `UserError` if it is missing or damaged."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if config["format"] != FORMAT:
            raise UserError(f"{folder / CONFIG}: format {config['format']}, but this version reads {FORMAT}; update it")
        return Meta.from_json(config), config["stages"]
    except OSError as error:
        raise UserError(f"{folder / CONFIG}: cannot be read ({error.strerror}); export the system again") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / CONFIG}: not the config of an exported system ({error!r:.100})") from None


def read_weights(folder: Path, like: Mapping[str, Any], digests: Mapping[str, str]) -> dict[str, Any]:
    """Reads the weights of stages in float32, shaped as `like`. Raises `UserError` if they are damaged or others."""
    path, wanted = folder / WEIGHTS, flatten_dict(dict(like), sep="/")
    try:
        # The library's own loaders for NumPy and Flax do not know bfloat16.
        found = dict(safetensors.deserialize(path.read_bytes()))
        flat = {
            name: np.frombuffer(each["data"], STORED[each["dtype"]]).reshape(each["shape"]).astype(np.float32)
            for name, each in found.items()
        }
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); export the system again") from None
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"{path}: damaged, or not a safetensors file ({str(error).splitlines()[0][:100]})") from None
    for name, leaf in wanted.items():
        if name not in flat or flat[name].shape != leaf.shape:
            shape = flat[name].shape if name in flat else "missing"
            raise UserError(f"{path}: does not fit {folder / CONFIG}: {name} is {shape}, must be {leaf.shape}")
    tree = unflatten_dict({name: flat[name] for name in wanted}, sep="/")
    for name in like:
        if digest(tree[name]) != digests[name]:
            raise UserError(f"{path}: damaged (stage {name!r} does not match its digest in {CONFIG}); get it again")
    return tree


def portable(meta: Meta) -> dict:
    """The metadata as JSON, without paths of this machine."""
    data = meta.to_json()
    for key in MACHINE:
        *groups, last = key.split(".")
        group = data["config"]
        for name in groups:
            group = group.get(name, {})
        if last in group:
            group[last] = ""
    data["config"]["compilation_cache"] = "~/.cache/slf_jax/xla"
    for settings in (*data["config"].get("extract", {}).values(), *data["provenance"].get("extractors", {}).values()):
        if isinstance(settings, dict) and "weights" in settings:
            settings["weights"] = _public(settings["weights"])
    return data


def _public(weights: str) -> str:
    """A hub id as it is; of a local path only the name."""
    path = PurePath(weights)
    is_local = URL.match(weights) or path.is_absolute() or len(path.parts) != 2 or Path(weights).expanduser().exists()
    return path.name if is_local else weights


def check_target(folder: Path) -> None:
    """Raises `UserError` if a folder holds anything but an exported system."""
    others = sorted(path.name for path in folder.iterdir() if path.name not in FILES) if folder.is_dir() else []
    if others:
        raise UserError(f"{folder}: holds other files ({others[0]}); choose an empty or new folder with --out")
