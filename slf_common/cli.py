"""What every command shares: its parser, config overrides, and mistakes reported in one line."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence

import ml_collections

from slf_common.config import load_config
from slf_common.errors import UserError
from slf_common.rules import Rule


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
    arguments: argparse.ArgumentParser, argv: Sequence[str] | None = None, rules: Mapping[str, Rule] | None = None
) -> tuple[argparse.Namespace, ml_collections.ConfigDict]:
    """Parses flags, `--config FILE` and any number of `--config.key=value` overrides.

    `rules` tell which tables of the config take further keys; they are not checked here.
    """
    arguments.add_argument("--config", required=True, metavar="FILE", help="configs/demo.py, configs/base.py, ...")
    arguments.add_argument_group(
        "overrides",
        "--config.KEY=VALUE sets any leaf of the config, e.g. --config.train.steps=100; of several for one key the "
        "last one counts",
    )
    args, overrides = parse_overrides(arguments, argv)
    return args, load_config(args.config, overrides, rules)


def parse_overrides(
    arguments: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> tuple[argparse.Namespace, dict[str, str]]:
    """Parses flags, and any number of `--config.key=value` or `--config.key value` into `{"key": "value"}`.

    Of several for one key the last one counts.
    """
    flags, overrides = _split(sys.argv[1:] if argv is None else argv)
    return arguments.parse_args(flags), overrides


def _split(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """A command's own flags, and the overrides among them."""
    flags, overrides, rest = [], {}, iter(argv)
    for arg in rest:
        if not arg.startswith("--config."):
            flags.append(arg)
            continue
        key, equals, value = arg.removeprefix("--config.").partition("=")
        if not equals:
            value = next(rest, None)
        if value is None or (not equals and value.startswith("--")):
            raise UserError(f"{arg}: an override needs a value, as in --config.{key}=VALUE")
        overrides[key] = value
    return flags, overrides
