"""Draws faces from your own recording: `python -m app.draw --workdir runs/demo --voice me.wav`.

Writes one PNG per face, whose text chunks say that it is synthetic and how it was made, and a contact sheet: the
thumbnail, then one column per guidance scale. With several recordings, each gets a folder of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from app import arguments
from app.system import FaceSystem, Person
from slf_common import cli
from slf_common.errors import UserError
from slf_common.files import check_writable, local_path
from slf_jax.cascade.images import downscale
from slf_jax.cascade.sizes import THUMBNAIL_SIZE
from slf_jax.inference.arguments import check_sampling
from slf_jax.inference.metadata import unique_names, write_faces
from slf_jax.inference.scales import Scale, format_scale, parse_scales
from slf_jax.plots import grids

SHEET = "contact_sheet.png"


def draw(system: FaceSystem, args: argparse.Namespace, scales: Sequence[Scale]) -> str:
    """Draws the faces of all recordings and writes them to `args.out`; returns a line that says where."""
    voices = _recordings(args.voice)
    thumbnail = system.read_thumbnail(args.thumbnail, face=args.face) if args.thumbnail else None
    folders = [args.out / name for name in unique_names([v.stem for v in voices])] if len(voices) > 1 else [args.out]
    failed = 0
    each: Sequence[Path | None] = voices or [None]
    for voice, out in zip(each, folders, strict=True):
        try:
            person = _describe(system, args, voice, thumbnail)
        except UserError as error:
            if len(voices) < 2:
                raise
            failed += 1
            print(f"skipped: {error}", file=sys.stderr)
            continue
        _write(system, args, person, scales, voice.stem if voice else "face", out)
    if failed == len(voices) > 0:
        raise UserError(f"none of the {failed} recordings could be used")
    count = max(1, len(voices) - failed) * len(scales) * args.samples
    return f"{count} faces in {args.out}, with a contact sheet of each recording: {SHEET}"


def _recordings(paths: Sequence[Path]) -> list[Path]:
    if not paths:
        return []
    from extract.recordings import find_recordings

    return [recording for path in paths for recording in find_recordings(path)]


def _describe(system: FaceSystem, args: argparse.Namespace, voice: Path | None, thumbnail: np.ndarray | None) -> Person:
    recording = system.listen(voice) if voice else None
    for note in recording.notes if recording else ():
        print(f"note: {voice}: {note}")
    person = system.describe_person(
        voice=recording, thumbnail=thumbnail, age=args.age, gender=args.gender, ethnicity=args.ethnicity,
        language=args.language,
    )  # fmt: skip
    source = {"thumbnail": args.thumbnail.name} if args.thumbnail else {}
    return dataclasses.replace(person, notes={**person.notes, **source})


def _write(
    system: FaceSystem, args: argparse.Namespace, person: Person, scales: Sequence[Scale], stem: str, out: Path
) -> None:
    images = system.sample(person, scales, args.samples, args.seed, progress="drawing")
    texts = [format_scale(scale) for scale in scales]
    names = unique_names([f"{stem}_scale{text.replace(':', '-')}" for text in texts])
    write_faces(images, names, out, [system.notes(person, scale, args.seed) for scale in scales])
    columns = {f"scale {text}": faces for text, faces in zip(texts, images, strict=True)}
    if person.has_thumbnail:
        small = downscale(person.record["face"][None]).repeat(args.samples, 0)
        columns = {f"{THUMBNAIL_SIZE}x{THUMBNAIL_SIZE} thumbnail": small, **columns}
    grids.image_grid(columns, out / SHEET)


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser(
        "app.draw",
        "Draws faces from a voice, a thumbnail, age, gender and ethnicity, in any combination.",
        [
            "python -m app.draw --voice me.wav                    # the demo's system: made-up people",
            "python -m app.draw --workdir runs/mine --voice me.wav",
            "python -m app.draw --workdir runs/demo --voice me.mp4 --thumbnail me.jpg --scales 0,2,4,8 --samples 4",
            "python -m app.draw --workdir runs/demo --thumbnail photo.jpg --face --age 34 --gender female",
            "python -m app.draw --workdir hf://owner/name --voice recordings/ --out drawn",
        ],
    )
    arguments.add_arguments(parser)
    parser.add_argument(
        "--voice", nargs="+", type=local_path, default=[], metavar="FILE",
        help="sound or video files, or folders of them; the first 24 s of each are used",
    )  # fmt: skip
    parser.add_argument(
        "--thumbnail", type=local_path, metavar="FILE", help="picture whose centre square is averaged to 8x8 pixels"
    )
    parser.add_argument("--face", action="store_true", help="crop the picture to its largest face (extra: extract)")
    parser.add_argument("--age", type=float, metavar="YEARS", help="age in years")
    for name, example in (("gender", "female"), ("ethnicity", "asian"), ("language", "english")):
        parser.add_argument(f"--{name}", default="", metavar="NAME", help=f"as in --{name} {example}")
    parser.add_argument("--scales", default="0,2,4,8", help="guidance scales (default: 0,2,4,8; 0: thumbnail alone)")
    parser.add_argument("--samples", type=int, default=1, help="number of faces at each scale (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    parser.add_argument("--out", type=local_path, default=Path("faces"), help="folder to write to (default: faces)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args, overrides = cli.parse_overrides(_parser(), argv)
    scales = parse_scales(args.scales)
    check_sampling(args, overrides)
    if args.face and not args.thumbnail:
        raise UserError("--face: give the picture with --thumbnail FILE")
    check_writable(args.out, SHEET)
    system = arguments.load_system(args, overrides)
    print(draw(system, args, scales))


if __name__ == "__main__":
    cli.run(main)
