"""What every command shares: its parser, config overrides, and mistakes reported in one line."""

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
# What libraries say where all is well; anything else is shown. Orbax: a run is opened for reading; a checkpoint that is
# not OCDBT (slf_jax/state.py) has nothing to merge; not every checkpoint has a validation loss. pyannote: no FFmpeg,
# while it is given waves and not files.
HARMLESS = (
    "CheckpointManagerOptions.read_only=True, setting",
    "Given directory is read only=",
    "Skipping merge of OCDBT checkpoints",
    "Requested `tracked_metric`; did not provide metrics",
    "torchcodec is not installed correctly",
)
FOR_PROGRAMMERS = (
    DeprecationWarning, PendingDeprecationWarning, FutureWarning, SyntaxWarning, ImportWarning, ResourceWarning,
)  # fmt: skip
_told: set[str] = set()
# A disk or a limit, whatever was being done; most such errors name no file.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SYSTEM = (*NO_ROOM, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG, errno.ESTALE)


def run(main: Callable[[], object]) -> None:
    """Runs a command's `main`. A `UserError`, or a file that cannot be read or written, ends it with one line on
    stderr and exit status 2; Ctrl-C with one line and 130; a reader of stdout that went away silently with 141.
    """
    interrupt.imports_done()
    logging.getLogger("absl").addFilter(_is_news)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names that the terminal's encoding lacks
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
    """What to tell of a `UserError`, or of an `OSError` that a file or the system caused; None of any other error."""
    if isinstance(error, UserError):
        return str(error)
    if not isinstance(error, OSError) or (error.filename is None and error.errno not in SYSTEM):
        return None
    reason = error.strerror or str(error)
    way_on = "; make room there, then run the same command again" if error.errno in NO_ROOM else ""
    name = error.filename
    where = "" if name is None else f"{os.fsdecode(name) if isinstance(name, bytes) else name}: "
    return f"{where}{reason}{way_on}"


def _end(line: str, status: int) -> None:
    print(line, file=sys.stderr)
    _discard_output()
    raise SystemExit(status) from None


def _discard_output() -> None:
    """What stdout still holds goes nowhere if it cannot be written; Python would complain at exit."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_news(record: logging.LogRecord) -> bool:
    return not any(text in record.getMessage() for text in HARMLESS)


@contextlib.contextmanager
def deaf_children() -> Iterator[None]:
    """Processes started inside never hear an interrupt from the terminal; this one, which stops them, does after."""
    heard: list[int] = []
    # The mask is what children inherit. It is this thread's alone: another may take the signal, and Python would
    # raise here, where a half-started child waits for its orders.
    before = signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.signal(signal.SIGINT, before)
        if heard:
            signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, other people's libraries do not write to the terminal. Errors pass through; warnings that are for a
    user are told afterwards, once each and in one line.
    """
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(io.StringIO()):
        with contextlib.redirect_stderr(io.StringIO()):
            for kind in FOR_PROGRAMMERS:
                warnings.simplefilter("ignore", kind)
            yield
    for warning in caught:
        line = (str(warning.message).strip().splitlines() or [""])[0]
        if line not in _told and not any(text in line for text in HARMLESS):
            _told.add(line)
            print(f"note: {warning.category.__name__}: {line}", file=sys.stderr)


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
