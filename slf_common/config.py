"""Loading a config and setting its leaves.

A config is a Python file with `get_config() -> ml_collections.ConfigDict`. Any leaf can be set on the
command line as `--config.train.steps=100`; an unknown key or a value of another type is refused. What values a leaf
may have is said by rules (`slf_common.rules`).
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib.util
import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from slf_common.errors import UserError
from slf_common.files import local_path
from slf_common.rules import Rule, find_leaves, find_rule

WORDS = {"true": True, "false": False}
KINDS = {bool: "true or false", int: "a whole number", float: "a number", tuple: "a tuple", list: "a tuple"}


def load_config(
    path: str, overrides: Mapping[str, str] | None = None, rules: Mapping[str, Rule] | None = None
) -> ml_collections.ConfigDict:
    """Loads `get_config()` from a Python file and applies `{"a.b": "value"}` overrides; `FILE:NAME` calls it with NAME.

    Raises `UserError` for a missing file, one that fails, an unknown key (naming the nearest valid one) or a wrong
    type.
    """
    path, name = str(local_path(path)), ""
    if ":" in path and not Path(path).is_file():  # a colon may be in the path itself
        path, _, name = path.rpartition(":")
    if not Path(path).is_file():
        raise UserError(f"{path}: no such config file; the ones that ship are in configs/")
    config = _get_config(path, name)
    override(config, overrides or {}, rules)
    return config


def _get_config(path: str, name: str) -> ml_collections.ConfigDict:
    """What the file's `get_config()` gives; whatever goes wrong in it is told with its line."""
    spec = importlib.util.spec_from_file_location("slf_config", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path}: a config is a Python file (.py) with get_config()")
    module, arguments = importlib.util.module_from_spec(spec), [name] if name else []
    with _told_with_line(path):
        spec.loader.exec_module(module)
    function = getattr(module, "get_config", None)
    if not callable(function):
        raise UserError(f"{path}: a config file defines get_config()")
    if not _takes(function, arguments):
        wanted = f"it has no config named {name!r}" if name else f"get_config() takes a name, as in {path}:NAME"
        raise UserError(f"{path}: {wanted}")
    with _told_with_line(path):
        try:
            config = function(*arguments)
        except KeyError as error:
            if name and error.args == (name,):
                raise UserError(f"{path}: it has no config named {name!r}") from error
            raise
    if type(config) is not ml_collections.ConfigDict:
        raise UserError(f"{path}: get_config() must return an ml_collections.ConfigDict, not {type(config).__name__}")
    return config


@contextlib.contextmanager
def _told_with_line(path: str) -> Iterator[None]:
    """Tells in one line what went wrong inside, and where in the file at `path`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        if isinstance(error, SyntaxError) and error.filename == path:
            lines.append(error.lineno)
        place = f"{path}, line {lines[-1]}" if lines else path
        reason = next(iter(str(error).strip().splitlines()), "")
        raise UserError(f"{place}: {type(error).__name__}: {reason}") from error


def _takes(function: Callable, arguments: Sequence[str]) -> bool:
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    return True


def override(
    config: ml_collections.ConfigDict, overrides: Mapping[str, str], rules: Mapping[str, Rule] | None = None
) -> None:
    """Sets `{"a.b": "value"}`, each read as the type that the config's own value has.

    `rules` tell which tables take further keys. Raises `UserError`.
    """
    for key, text in overrides.items():
        _override(config, key, text, rules or {})


def _override(config: ml_collections.ConfigDict, key: str, text: str, rules: Mapping[str, Rule]) -> None:
    node = config
    *parents, leaf = key.split(".")
    for depth, part in enumerate((*parents, leaf)):
        new = depth == len(parents) and isinstance(node, ml_collections.ConfigDict) and part not in node
        if new and leaf and find_rule(rules, key):
            with node.unlocked():
                node[leaf] = _plain(text)
            return
        if not isinstance(node, ml_collections.ConfigDict) or part not in node:
            raise UserError(f"--config.{key}: no such key; {_nearest(config, key)}")
        if depth < len(parents):
            node = node[part]
    if isinstance(node[leaf], ml_collections.ConfigDict):
        raise UserError(f"--config.{key} is a group of settings; set one of: {', '.join(sorted(node[leaf]))}")
    try:
        node[leaf] = _typed(text, node[leaf])
    except (ValueError, TypeError, SyntaxError, OverflowError, RecursionError, MemoryError):
        kind = KINDS.get(type(node[leaf]), "a Python value")
        raise UserError(f"--config.{key}={text}: must be {kind}; it is {node[leaf]!r} now") from None


def _nearest(config: ml_collections.ConfigDict, key: str) -> str:
    near = difflib.get_close_matches(key, [name for name, _ in find_leaves(config)], n=1, cutoff=0.0)
    return f"did you mean --config.{near[0]}?" if near else "this config has no settings"


def _typed(text: str, current: object) -> object:
    """Reads `text` as the type that the config's own value has (tuples accept `a,b,c`)."""
    if isinstance(current, str):
        return text
    if isinstance(current, bool):
        return _bool(text)
    if isinstance(current, int):
        return _int(text)
    if isinstance(current, float):
        return float(text)
    if isinstance(current, (tuple, list)):
        return _tuple(text, current)
    return ast.literal_eval(text)


def _bool(text: str) -> bool:
    words = {**WORDS, "1": True, "0": False}
    if text.strip().lower() not in words:
        raise ValueError
    return words[text.strip().lower()]


def _int(text: str) -> int:
    """`100`, `1_000`, `1e5`, `2.0`; raises `ValueError` or `OverflowError` for what is not whole."""
    with contextlib.suppress(ValueError):
        return int(text)
    number = float(text)
    if number != int(number):
        raise ValueError
    return int(number)


def _tuple(text: str, current: Sequence) -> tuple:
    if text.strip().startswith(("(", "[")):
        value = ast.literal_eval(text)
        return tuple(value) if isinstance(value, (tuple, list)) else (value,)
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not current:  # nothing tells what it holds: numbers where all read as numbers
        with contextlib.suppress(ValueError, SyntaxError):
            return tuple(_literal(part) for part in parts)
        return tuple(parts)
    return tuple(parts) if isinstance(current[0], str) else tuple(_literal(part) for part in parts)


def _literal(text: str) -> Any:
    """A number, true or false, as in a tuple; raises `ValueError` or `SyntaxError`."""
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    with contextlib.suppress(ValueError):
        return int(text)
    with contextlib.suppress(ValueError):
        return float(text)
    return ast.literal_eval(text)


def _plain(text: str) -> Any:
    """A value of which nothing is known but its text."""
    with contextlib.suppress(ValueError, SyntaxError):
        return _literal(text.strip())
    return text
