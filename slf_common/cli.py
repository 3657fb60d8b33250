"""Shared by every command: the argument parser, config overrides, and one-line error reports."""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence

import ml_collections

from slf_common import interrupt
from slf_common.config import load_config
from slf_common.errors import UserError
from slf_common.rules import Rule

PIPE_CLOSED = 141  # exit status: 128 + SIGPIPE
# Library messages that report no problem; all others are shown. Orbax: the run is opened read-only; checkpoints are not
# OCDBT (slf_jax/training/checkpoints.py), so there is nothing to merge; not every checkpoint has a validation loss.
# pyannote: FFmpeg is missing, but waveforms in memory do not need it.
HARMLESS = (
    "CheckpointManagerOptions.read_only=True, setting",
    "Given directory is read only=",
    "Skipping merge of OCDBT checkpoints",
    "Requested `tracked_metric`; did not provide metrics",
    "torchcodec is not installed correctly",
)
DEVELOPER_WARNINGS = (
    DeprecationWarning, PendingDeprecationWarning, FutureWarning, SyntaxWarning, ImportWarning, ResourceWarning,
)  # fmt: skip
_reported: set[str] = set()  # warnings that `quiet` has printed
# A full disk or a system limit. Most of these errors carry no file name.
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SYSTEM = (*NO_SPACE, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG, errno.ESTALE)


def run(main: Callable[[], object]) -> None:
    """Runs a command's `main` and turns expected errors into an exit status.

    A `UserError`, or a file that cannot be read or written: one line on stderr, status 2. Ctrl-C: one line, status 130.
    A closed pipe on stdout: no message, status 141. Any other exception passes through.
    """
    interrupt.imports_done()
    logging.getLogger("absl").addFilter(_is_relevant)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for names that the terminal cannot encode
    try:
        try:
            main()
        finally:
            if sys.stdout:
                sys.stdout.flush()
    except KeyboardInterrupt as stop:
        _end("; ".join(["interrupted", *map(str, stop.args)]), interrupt.STATUS)
    except BrokenPipeError:
        _discard_output()
        raise SystemExit(PIPE_CLOSED) from None
    except Exception as error:
        if (line := explain(error)) is None:
            raise
        _end(f"error: {line}", 2)


def explain(error: BaseException) -> str | None:
    """The one-line message of a `UserError` or of an `OSError` about a file or a system limit, else None."""
    if isinstance(error, UserError):
        return str(error)
    if not isinstance(error, OSError) or (error.filename is None and error.errno not in SYSTEM):
        return None
    reason = error.strerror or str(error)
    advice = "; free some space there, then run the same command again" if error.errno in NO_SPACE else ""
    name = error.filename
    where = "" if name is None else f"{os.fsdecode(name) if isinstance(name, bytes) else name}: "
    return f"{where}{reason}{advice}"


def _end(line: str, status: int) -> None:
    print(line, file=sys.stderr)
    _discard_output()
    raise SystemExit(status) from None


def _discard_output() -> None:
    """Flushes stdout, or redirects it to /dev/null if that fails: otherwise Python prints an error at exit."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_relevant(record: logging.LogRecord) -> bool:
    return not any(text in record.getMessage() for text in HARMLESS)


@contextlib.contextmanager
def block_sigint_in_children() -> Iterator[None]:
    """Blocks SIGINT in processes started inside; this process, which stops them, handles an interrupt on leaving."""
    received: list[int] = []
    # Children inherit the signal mask. The mask covers this thread only: another thread may receive the signal, and
    # Python would raise KeyboardInterrupt here while a child is half started. Hence the handler that only records it.
    before = signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.signal(signal.SIGINT, before)
        if received:
            signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences stdout and stderr of third-party libraries. Exceptions pass through; warnings meant for users are
    printed afterwards, one line each, and only once per process.
    """
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(io.StringIO()):
        with contextlib.redirect_stderr(io.StringIO()):
            for kind in DEVELOPER_WARNINGS:
                warnings.simplefilter("ignore", kind)
            yield
    for warning in caught:
        line = (str(warning.message).strip().splitlines() or [""])[0]
        if line not in _reported and not any(text in line for text in HARMLESS):
            _reported.add(line)
            print(f"note: {warning.category.__name__}: {line}", file=sys.stderr)


def parser(module: str, about: str, examples: Sequence[str]) -> argparse.ArgumentParser:
    """An argument parser whose help ends with example commands, one per line."""
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

    `rules` define the tables that accept new keys; values are not checked against them here.
    """
    arguments.add_argument("--config", required=True, metavar="FILE", help="configs/demo.py, configs/base.py, ...")
    arguments.add_argument_group(
        "overrides",
        "--config.KEY=VALUE or --config.KEY VALUE sets any value of the config, e.g. --config.seed=1; if a key is "
        "given more than once, the last value is used",
    )
    args, overrides = parse_overrides(arguments, argv)
    return args, load_config(args.config, overrides, rules)


def parse_overrides(
    arguments: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> tuple[argparse.Namespace, dict[str, str]]:
    """Parses flags, and any number of `--config.key=value` or `--config.key value` into `{"key": "value"}`.

    If a key is given more than once, the last value is used. Raises `UserError` for an override without a value.
    """
    flags, overrides = _split(sys.argv[1:] if argv is None else argv)
    return arguments.parse_args(flags), overrides


def _split(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Splits arguments into the command's own flags and the config overrides."""
    flags: list[str] = []
    overrides: dict[str, str] = {}
    rest = iter(argv)
    for arg in rest:
        if not arg.startswith("--config."):
            flags.append(arg)
            continue
        key, equals, value = arg.removeprefix("--config.").partition("=")
        if not equals:
            value = next(rest, "--")
        if not equals and value.startswith("--"):
            raise UserError(f"{arg}: an override needs a value, as in --config.{key}=VALUE")
        overrides[key] = value
    return flags, overrides
