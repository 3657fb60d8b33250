"""What every command shares: configs with overrides, and mistakes told in one line.

A config is a Python file with `get_config() -> ml_collections.ConfigDict`. Any leaf can be set on the
command line as `--config.train.steps=100`; an unknown key or a value of another type is refused.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import importlib.util
import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import ml_collections


class UserError(Exception):
    """A mistake the user can mend: one line that says what, where and what to do. Exit status 2."""


def run(main: Callable[[], object]) -> None:
    """Runs a command's `main`; a `UserError` ends it with one line on stderr and exit status 2."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns of much that is as it should be
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, other people's libraries say nothing; errors pass through."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        with contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield


def parser(module: str, about: str, examples: Sequence[str]) -> argparse.ArgumentParser:
    """An argument parser whose help ends with examples, one command to a line."""
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=about,
        epilog="examples:\n" + "\n".join(f"  {line}" for line in examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def parse_with_config(
    arguments: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> tuple[argparse.Namespace, ml_collections.ConfigDict]:
    """Parses flags, `--config FILE` and any number of `--config.key=value` overrides."""
    arguments.add_argument("--config", required=True, metavar="FILE", help="configs/demo.py, configs/base.py, ...")
    arguments.add_argument_group(
        "overrides", "--config.KEY=VALUE sets any leaf of the config, e.g. --config.train.steps=100"
    )
    args, overrides = parse_overrides(arguments, argv)
    return args, load_config(args.config, overrides)


def parse_overrides(
    arguments: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> tuple[argparse.Namespace, dict[str, str]]:
    """Parses flags, and any number of `--config.key=value` into `{"key": "value"}`."""
    args, rest = arguments.parse_known_args(argv)
    wrong = [arg for arg in rest if not arg.startswith("--config.")]
    if wrong:
        arguments.error(f"unrecognized arguments: {' '.join(wrong)}")
    return args, _pairs(rest)


def _pairs(rest: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for arg in rest:
        key, equals, value = arg.removeprefix("--config.").partition("=")
        if not equals:
            raise UserError(f"{arg}: an override needs a value, as in --config.{key}=VALUE")
        pairs[key] = value
    return pairs


def load_config(path: str, overrides: dict[str, str] | None = None) -> ml_collections.ConfigDict:
    """Loads `get_config()` from a Python file and applies `{"a.b": "value"}` overrides; `FILE:NAME` calls it with NAME.

    Raises `UserError` for a missing file, an unknown key (naming the nearest valid one) or a wrong type.
    """
    path, _, name = path.partition(":")
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
