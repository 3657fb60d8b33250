"""The flags shared by all commands that sample from a trained system."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from slf_common import cli
from slf_common.errors import UserError
from slf_common.files import check_writable, local_path
from slf_jax import distributed, features
from slf_jax.inference import exported, hub
from slf_jax.inference.scales import check_distinct
from slf_jax.inference.trained import CHECKPOINTS, Trained, load
from slf_jax.inference.weak import with_weak
from tfrecords.reader import Clips

SOURCE_HELP = "run directory of slf_jax.train, exported folder, or hf://owner/name"


def parse_source(text: str) -> str | Path:
    """Parses where a trained system is: a local path, or an address on the hub."""
    return text if hub.is_hub(text) else local_path(text)


def default_out(source: str | Path, folder: str) -> Path:
    """The default folder to write to: in the run directory; for an exported system in the working directory."""
    if isinstance(source, str) or exported.is_exported(source):
        return Path(folder)
    return source / folder


def add_arguments(arguments: argparse.ArgumentParser) -> None:
    """Adds the flags shared by all commands that sample."""
    arguments.add_argument("--workdir", required=True, type=parse_source, help=SOURCE_HELP)
    arguments.add_argument(
        "--checkpoint", default="newest", choices=CHECKPOINTS,
        help="newest (default), or best: of lowest validation loss among those kept",
    )  # fmt: skip
    arguments.add_argument(
        "--guide-with", default="", metavar="RUN[@STEP]",
        help="guide with a worse version of the system instead of without conditions: scale 0 is that version's, 1 the "
        "system's own; an earlier checkpoint (STEP, or BASE:UPSAMPLER), or another run on the same data, with smaller "
        "networks for instance",
    )  # fmt: skip
    arguments.add_argument("--data", default="", help="dataset folder (default: the one it was trained on)")
    arguments.add_argument("--split", default="test", help="split to sample from (default: test)")
    arguments.add_argument("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    arguments.add_argument("--samples", type=int, default=1, help="number of faces per person (default: 1)")
    arguments.add_argument(
        "--without", default="", metavar="NAMES", help="comma-separated inputs to mask, as in mel,language"
    )
    arguments.add_argument(
        "--chunk", type=int, default=16, help="maximum number of faces at once at each scale (default: 16)"
    )
    arguments.add_argument(
        "--memory", type=float, default=0.0, metavar="GB",
        help="GB that a chunk may use on each device; larger chunks are split (default: most of the free memory)",
    )  # fmt: skip
    arguments.add_argument_group(
        "overrides", "--config.sample.KEY=VALUE overrides a setting of the sampler, e.g. --config.sample.steps=32"
    )


def add_lowres_aug(arguments: argparse.ArgumentParser) -> None:
    """Adds the flag of the commands that sweep the noise on the upsampler's input like a scale."""
    arguments.add_argument(
        "--lowres-aug", default="", metavar="STD,STD,...",
        help="levels of noise on the upsampler's input (config.sample.lowres_aug), each combined with each of --scales",
    )  # fmt: skip


def parse(
    arguments: argparse.ArgumentParser, argv: Sequence[str] | None, folder: str, *files: str
) -> tuple[argparse.Namespace, Trained]:
    """Parses flags and overrides, and loads the system; `--out` defaults to WORKDIR/folder.

    Raises `UserError`, also if `files` could not be written there.
    """
    arguments.add_argument("--out", type=local_path, help=f"folder to write to (default: WORKDIR/{folder})")
    args, overrides = cli.parse_overrides(arguments, argv)
    args.out = args.out or default_out(args.workdir, folder)
    if args.chunk < 1:
        raise UserError(f"--chunk {args.chunk}: give at least 1")
    if not 0 <= args.memory < math.inf:
        raise UserError(f"--memory {args.memory}: give gigabytes, or leave it out")
    check_sampling(args, overrides)
    check_writable(args.out, *files)
    trained = load(args.workdir, args.checkpoint, overrides=overrides)
    if args.guide_with:
        trained = with_weak(trained, args.guide_with)
    if not trained.meta.config.data.dir:  # an export
        if not args.data:
            raise UserError(f"{args.workdir}: an exported system comes without data; give a dataset folder with --data")
        trained.meta.config.data.dir = args.data
    distributed.use_compilation_cache(trained.meta.config.compilation_cache)
    return args, trained


def check_sampling(args: argparse.Namespace, overrides: Iterable[str]) -> None:
    """Raises `UserError` for an unusable number of samples or seed, or an override that is not of the sampler."""
    if args.samples < 1:
        raise UserError(f"--samples {args.samples}: give at least 1")
    if not 0 <= args.seed < 2**31:
        raise UserError(f"--seed {args.seed}: give a number from 0 to {2**31 - 1}")
    check_overrides(overrides)


def check_overrides(overrides: Iterable[str]) -> None:
    """Raises `UserError` for an override that is not of the sampler."""
    for key in overrides:
        if not key.startswith("sample."):
            raise UserError(f"--config.{key}: only --config.sample.* of a trained system can be changed")


def open_clips(trained: Trained, args: argparse.Namespace, without: Sequence[str]) -> Clips:
    """Opens the split to sample from. Raises `UserError` if its features differ from those of the training data."""
    directory = args.data or trained.meta.config.data.dir
    clips, meta = Clips(directory, args.split), trained.meta
    inputs = trained.system.without(without).inputs
    trained_with, given = (meta.schema, meta.statistics), (clips.schema, clips.statistics)
    features.check_same_features(inputs, *trained_with, *given, directory, "leave it out with --without NAME")
    return clips


def parse_names(text: str, flag: str = "--without") -> tuple[str, ...]:
    """Parses `"mel, age"` to names. Raises `UserError` if a name is given twice."""
    found = tuple(name.strip() for name in text.split(",") if name.strip())
    check_distinct(found, f"{flag} {text}")
    return found
