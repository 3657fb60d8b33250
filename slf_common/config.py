"""Loading a config file and overriding its values.

A config is a Python file with `get_config() -> ml_collections.ConfigDict`. Any value can be set on the command line,
as in `--config.seed=1`. Unknown keys and values of the wrong type are refused; the valid values of each key are defined
by rules (`slf_common.rules`).
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
from slf_common.rules import Rule, find_leaves, find_rule, set_value

WORDS = {"true": True, "false": False}
PARSE_ERRORS = (ValueError, TypeError, SyntaxError, OverflowError, RecursionError, MemoryError)
KINDS = {bool: "true or false", int: "a whole number", float: "a number", tuple: "a tuple", list: "a tuple"}


def load_config(
    path: str, overrides: Mapping[str, str] | None = None, rules: Mapping[str, Rule] | None = None
) -> ml_collections.ConfigDict:
    """Loads `get_config()` from a Python file and applies the overrides `{"a.b": "value"}`.

    The path `FILE:NAME` calls `get_config(NAME)`. Raises `UserError` for a file that is missing or fails, an unknown
    key (with the closest valid key), and a value of the wrong type.
    """
    path, name = str(local_path(path)), ""
    if ":" in path and not Path(path).is_file():  # the path itself may contain a colon
        path, _, name = path.rpartition(":")
    if not Path(path).is_file():
        raise UserError(f"{path}: no such config file; configs/ has the ones that come with this package")
    config = _get_config(path, name)
    override(config, overrides or {}, rules)
    return config


def _get_config(path: str, name: str) -> ml_collections.ConfigDict:
    """Returns the result of the file's `get_config()`; an error inside is reported with its line number."""
    spec = importlib.util.spec_from_file_location("slf_config", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path}: a config must be a Python file (.py) that defines get_config()")
    module, arguments = importlib.util.module_from_spec(spec), [name] if name else []
    with _report_line(path):
        spec.loader.exec_module(module)
    function = getattr(module, "get_config", None)
    if not callable(function):
        raise UserError(f"{path}: a config file must define get_config()")
    if not _accepts(function, arguments):
        reason = f"it has no config named {name!r}" if name else f"get_config() takes a name, as in {path}:NAME"
        raise UserError(f"{path}: {reason}")
    with _report_line(path):
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
def _report_line(path: str) -> Iterator[None]:
    """Converts an exception to a one-line `UserError` with its line number in the file at `path`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        if isinstance(error, SyntaxError) and error.filename == path:
            lines.append(error.lineno or 1)
        where = f"{path}, line {lines[-1]}" if lines else path
        reason = next(iter(str(error).strip().splitlines()), "")
        raise UserError(f"{where}: {type(error).__name__}: {reason}") from error


def _accepts(function: Callable, arguments: Sequence[str]) -> bool:
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    return True


def override(
    config: ml_collections.ConfigDict, overrides: Mapping[str, str], rules: Mapping[str, Rule] | None = None
) -> None:
    """Sets `{"a.b": "value"}`; each text is parsed as the type of the config's current value.

    A key that the config lacks is added if `rules` have one for it: `train.constituent_drop.*` is the rule of a table
    that accepts new keys. A value of another type is accepted if it fits the rule of its key. Raises `UserError`.
    """
    for key, text in overrides.items():
        _override(config, key, text, rules or {})


def _override(config: ml_collections.ConfigDict, key: str, text: str, rules: Mapping[str, Rule]) -> None:
    rule = find_rule(rules, key)
    *parents, leaf = key.split(".")
    group = _find_group(config, parents, create=rule is not None)
    if group is None or not leaf or (leaf not in group and rule is None):
        raise UserError(f"--config.{key}: no such key; {_nearest(config, key)}")
    if rule is not None and leaf not in group:
        set_value(group, leaf, _parse_new(text, rule))
        return
    if isinstance(group[leaf], ml_collections.ConfigDict):
        raise UserError(f"--config.{key} is a group of settings; set one of: {', '.join(sorted(group[leaf]))}")
    try:
        group[leaf] = _parse(text, group[leaf])
    except PARSE_ERRORS:
        if rule is None or (fitting := _parse_fitting(text, rule)) is None:
            kind = KINDS.get(type(group[leaf]), "a Python value")
            raise UserError(f"--config.{key}={text}: must be {kind}; it is {group[leaf]!r} now") from None
        set_value(group, leaf, fitting)


def _find_group(
    config: ml_collections.ConfigDict, names: Sequence[str], *, create: bool
) -> ml_collections.ConfigDict | None:
    """The group at this path, None if there is none; `create` adds the missing ones."""
    group = config
    for name in names:
        if create and name and name not in group:
            set_value(group, name, ml_collections.ConfigDict())
        group = group.get(name)
        if not isinstance(group, ml_collections.ConfigDict):
            return None
    return group


def _nearest(config: ml_collections.ConfigDict, key: str) -> str:
    near = difflib.get_close_matches(key, [name for name, _ in find_leaves(config)], n=1, cutoff=0.0)
    return f"did you mean --config.{near[0]}?" if near else "this config has no settings"


def _parse(text: str, current: object) -> object:
    """Parses `text` as the type of the current value; tuples may be written as `a,b,c`."""
    if isinstance(current, str):
        return text
    if isinstance(current, bool):
        return _parse_bool(text)
    if isinstance(current, int):
        return _parse_int(text)
    if isinstance(current, float):
        return float(text)
    if isinstance(current, (tuple, list)):
        return _parse_tuple(text, current)
    return ast.literal_eval(text)


def _parse_fitting(text: str, rule: Rule) -> Any:
    """The text as a value that the rule accepts, None if there is none."""
    parsers: Sequence[Callable[[str], Any]] = (_parse_literal, _parse_bool, str, lambda text: _parse_tuple(text, ()))
    for parse in parsers:
        with contextlib.suppress(*PARSE_ERRORS):
            return rule.read(parse(text))
    return None


def _parse_new(text: str, rule: Rule) -> Any:
    """The value of a new key; one that does not fit the rule is refused later, by `rules.check`."""
    if (fitting := _parse_fitting(text, rule)) is not None:
        return fitting
    with contextlib.suppress(*PARSE_ERRORS):
        return _parse_literal(text)
    return text


def _parse_bool(text: str) -> bool:
    words = {**WORDS, "1": True, "0": False}
    if text.strip().lower() not in words:
        raise ValueError
    return words[text.strip().lower()]


def _parse_int(text: str) -> int:
    """Parses `100`, `1_000`, `1e5` or `2.0`; raises `ValueError` or `OverflowError` for other numbers."""
    with contextlib.suppress(ValueError):
        return int(text)
    number = float(text)
    if number != int(number):
        raise ValueError
    return int(number)


def _parse_tuple(text: str, current: Sequence) -> tuple:
    if text.strip().startswith(("(", "[")):
        value = ast.literal_eval(text)
        return tuple(value) if isinstance(value, (tuple, list)) else (value,)
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not current:  # the type of the entries is not known: numbers if all of them are numbers
        with contextlib.suppress(ValueError, SyntaxError):
            return tuple(_parse_literal(part) for part in parts)
        return tuple(parts)
    return tuple(parts) if isinstance(current[0], str) else tuple(_parse_literal(part) for part in parts)


def _parse_literal(text: str) -> Any:
    """Parses a number, true, false or another Python literal; raises `ValueError` or `SyntaxError`."""
    text = text.strip()
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    with contextlib.suppress(ValueError):
        return int(text)
    with contextlib.suppress(ValueError):
        return float(text)
    return ast.literal_eval(text)
