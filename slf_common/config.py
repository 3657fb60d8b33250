"""Loading a config and setting its leaves.

A config is a Python file with `get_config() -> ml_collections.ConfigDict`. Any leaf can be set on the
command line as `--config.train.steps=100`; an unknown key or a value of another type is refused.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_collections

from slf_common.errors import UserError
from slf_common.files import local_path


def load_config(path: str, overrides: dict[str, str] | None = None) -> ml_collections.ConfigDict:
    """Loads `get_config()` from a Python file and applies `{"a.b": "value"}` overrides; `FILE:NAME` calls it with NAME.

    Raises `UserError` for a missing file, an unknown key (naming the nearest valid one) or a wrong type.
    """
    path, name = str(local_path(path)), ""
    if ":" in path and not Path(path).is_file():  # a colon may be in the path itself
        path, _, name = path.rpartition(":")
    if not Path(path).is_file():
        raise UserError(f"{path}: no such config file; the ones that ship are in configs/")
    spec = importlib.util.spec_from_file_location("slf_config", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path}: a config is a Python file (.py) with get_config()")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"{path}: a config file defines get_config()")
    try:
        config = module.get_config(*([name] if name else []))
    except (KeyError, TypeError) as error:
        if not name:
            raise
        raise UserError(f"{path}: it has no config named {name!r}") from error
    override(config, overrides or {})
    return config


def override(config: ml_collections.ConfigDict, overrides: Mapping[str, str]) -> None:
    """Sets `{"a.b": "value"}`, each read as the type that the config's own value has. Raises `UserError`."""
    for key, text in overrides.items():
        _override(config, key, text)


def _override(config: ml_collections.ConfigDict, key: str, text: str) -> None:
    node = config
    *parents, leaf = key.split(".")
    for depth, part in enumerate((*parents, leaf)):
        if not isinstance(node, ml_collections.ConfigDict) or part not in node:
            raise UserError(f"--config.{key}: no such key; {_nearest(config, key)}")
        if depth < len(parents):
            node = node[part]
    if isinstance(node[leaf], ml_collections.ConfigDict):
        raise UserError(f"--config.{key} is a group of settings; set one of: {', '.join(sorted(node[leaf]))}")
    node[leaf] = _typed(key, text, node[leaf])


def _nearest(config: ml_collections.ConfigDict, key: str) -> str:
    names = list(_leaves(config))
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.0)
    return f"did you mean --config.{near[0]}?" if near else "this config has no settings"


def _leaves(config: ml_collections.ConfigDict, prefix: str = "") -> list[str]:
    names = []
    for key, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            names += _leaves(value, f"{prefix}{key}.")
        else:
            names.append(prefix + key)
    return names


def _typed(key: str, text: str, current: object) -> object:
    """Reads `text` as the type that the config's own value has (tuples accept `a,b,c`)."""
    if isinstance(current, str):
        return text
    try:
        if isinstance(current, bool):
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        if isinstance(current, int):
            return int(text)
        if isinstance(current, float):
            return float(text)
        if isinstance(current, (tuple, list)):
            return _tuple(text, current)
        return ast.literal_eval(text)
    except (ValueError, KeyError, SyntaxError):
        kind = type(current).__name__
        raise UserError(f"--config.{key}={text}: this setting is of type {kind}, now {current!r}") from None


def _tuple(text: str, current: Sequence) -> tuple:
    if text.strip().startswith(("(", "[")):
        return tuple(ast.literal_eval(text))
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not current:  # nothing tells what it holds: numbers where all read as numbers
        with contextlib.suppress(ValueError, SyntaxError):
            return tuple(ast.literal_eval(part) for part in parts)
        return tuple(parts)
    return tuple(parts) if isinstance(current[0], str) else tuple(ast.literal_eval(part) for part in parts)
