"""The flags shared by the commands of this package."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from app.system import FaceSystem, load
from slf_common.errors import UserError
from slf_jax.inference.arguments import SOURCE_HELP, check_overrides, parse_source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that choose the system and its weights."""
    parser.add_argument(
        "--workdir", type=parse_source, help=f"{SOURCE_HELP} (default: the demo's, which draws made-up people)"
    )
    parser.add_argument(
        "--weights", nargs="+", default=[], metavar="NAME=PATH",
        help="weights of an extractor, if those used in training are not published or lie elsewhere",
    )  # fmt: skip
    parser.add_argument(
        "--allow-other-weights", action="store_true", help="accept weights that differ from those used in training"
    )
    parser.add_argument_group(
        "overrides", "--config.sample.KEY=VALUE overrides a setting of the sampler, e.g. --config.sample.steps=32"
    )


def load_system(args: argparse.Namespace, overrides: Mapping[str, str]) -> FaceSystem:
    """Loads the system that the flags choose. Raises `UserError`."""
    check_overrides(overrides)
    weights = dict(_parse_weights(text) for text in args.weights)
    return load(args.workdir, overrides=overrides, weights=weights, allow_other_weights=args.allow_other_weights)


def _parse_weights(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise UserError(f"--weights {text}: must be NAME=PATH, as in --weights ecapa=models/ecapa")
    return name, path
