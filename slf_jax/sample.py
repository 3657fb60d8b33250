"""Samples faces of people: `python -m slf_jax.sample --workdir runs/demo`.

Writes one PNG per face, named after its clip. Its text chunks say that it is synthetic and how it was made (clip,
seed, scale, sampler, NFE, checkpoints). All faces are also drawn on a contact sheet.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from slf_common import cli
from slf_common.errors import UserError
from slf_common.files import local_path
from slf_jax.cascade.images import downscale
from slf_jax.cascade.sizes import SIZES, STAGES
from slf_jax.inference import arguments, metadata
from slf_jax.inference.people import find_clips, person_number, read_thumbnail
from slf_jax.inference.sampler import Sampler
from slf_jax.inference.scales import check_distinct, parse_scales
from slf_jax.inference.trained import Trained
from slf_jax.plots import grids
from tfrecords.reader import stack

SHEET, SHEET_ROWS = "contact_sheet.png", 32


def sample(trained: Trained, args: argparse.Namespace) -> str:
    """Samples, writes PNGs and a contact sheet to `args.out`; returns a line that says where. Raises `UserError`."""
    stages, without = arguments.parse_names(args.stages, "--stages"), arguments.parse_names(args.without)
    (scale,) = _check(args, stages)
    clips = arguments.open_clips(trained, args, without)
    chosen = find_clips(clips, args.clips, args.people)
    batch, ids = stack(chosen), [clip["clip_id"] for clip in chosen]
    real = batch["face"]
    if args.thumbnail:
        batch["face"] = np.broadcast_to(read_thumbnail(args.thumbnail), real.shape)
    sampler = Sampler(trained, stages=stages, chunk=args.chunk, memory=args.memory)
    (images,) = sampler(
        batch, np.array([person_number(clip_id) for clip_id in ids]), [scale], args.seed, samples=args.samples,
        use_thumbnail=not args.no_thumbnail, without=without, progress="sampling",
    )  # fmt: skip
    common = {
        **metadata.describe(trained, sampler.settings, stages, scale, args.seed),
        "thumbnail": "none" if args.no_thumbnail else args.thumbnail.name if args.thumbnail else "of the clip's face",
        "without": ", ".join(without),
    }
    notes = [{"clip": clip_id, **common} for clip_id in ids]
    paths = metadata.write_faces(images, metadata.unique_names(ids), args.out, notes)
    side = SIZES[stages[0]][0]
    inputs = {} if args.no_thumbnail else {f"{side}x{side}": downscale(batch["face"], side)}
    columns = {**inputs, **{f"sample {i}": images[:, i] for i in range(args.samples)}, "real": real}
    shown = {name: column[:SHEET_ROWS] for name, column in columns.items()}
    grids.image_grid(shown, args.out / SHEET, [clip_id[:40] for clip_id in ids[:SHEET_ROWS]])
    return f"{len(paths)} faces in {args.out}, all of them on {args.out / SHEET}"


def _check(args: argparse.Namespace, stages: tuple[str, ...]) -> tuple:
    """The scales of `args`, one; raises `UserError` for flags that cannot be used."""
    scales = parse_scales(args.scale, "--scale")
    if stages not in (STAGES, *((name,) for name in STAGES)):
        raise UserError(f"--stages {args.stages}: must be base,upsampler or base or upsampler")
    if len(scales) != 1:
        raise UserError(f"--scale {args.scale}: give one; slf_jax.sweep takes several")
    if args.no_thumbnail and (args.thumbnail or stages[0] != "base"):
        raise UserError("--no-thumbnail starts the base stage from noise: leave out --thumbnail and --stages upsampler")
    check_distinct(args.clips, "--clips")
    if args.people < 1:
        raise UserError(f"--people {args.people}: give at least 1")
    return scales


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.parser(
        "slf_jax.sample",
        "Samples faces from a trained system: from a thumbnail and a voice, a voice alone, or a thumbnail alone.",
        [
            "python -m slf_jax.sample --workdir runs/demo                             # thumbnail, voice, attributes",
            "python -m slf_jax.sample --workdir runs/demo --no-thumbnail --samples 4  # voice, attributes, from noise",
            "python -m slf_jax.sample --workdir runs/demo --scale 0                   # the thumbnail alone",
            "python -m slf_jax.sample --workdir runs/demo --without age,gender,ethnicity",
            "python -m slf_jax.sample --workdir runs/demo --clips p00900/00001/00001 --thumbnail picture.png",
            "python -m slf_jax.sample --workdir runs/demo --stages upsampler          # 32x32 to 128x128",
        ],
    )
    arguments.add_arguments(parser)
    parser.add_argument(
        "--clips", nargs="+", action="extend", default=[], metavar="ID", help="clip ids; the flag may be repeated"
    )
    parser.add_argument("--people", type=int, default=8, help="number of speakers, without --clips (default: 8)")
    parser.add_argument(
        "--scale", default="1", help="guidance scale, or BASE:UPSAMPLER; 0: thumbnail alone (default: 1)"
    )
    parser.add_argument(
        "--thumbnail", type=local_path, metavar="FILE", help="picture whose thumbnail replaces the clips' own"
    )
    parser.add_argument("--no-thumbnail", action="store_true", help="start from noise, without a thumbnail")
    parser.add_argument("--stages", default="base,upsampler", help="base (to 32x32), upsampler (from 32x32), or both")
    args, trained = arguments.parse(parser, argv, "faces", SHEET)
    print(sample(trained, args))


if __name__ == "__main__":
    cli.run(main)
