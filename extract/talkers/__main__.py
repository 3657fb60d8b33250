"""Write a population of synthetic talking people as mp4 files, with a table of who they are.

The folder looks like VoxCeleb2: OUT/p00042/00001/00001.mp4, and OUT/people.csv tells each
person's age, gender, ethnicity and split. Files that are there already are kept, so an interrupted
run is finished by running the same command again.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from extract.talkers.population import CLIPS, generate, splits


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m extract.talkers",
        description=__doc__,
        epilog="example: python -m extract.talkers --out data/demo/videos --people 64 --workers 2",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for clips and people.csv")
    parser.add_argument("--people", type=int, default=896, help="at least 3 (default: 896)")
    parser.add_argument("--seed", type=int, default=0, help="which population (default: 0)")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Parse flags, generate, print one line; bad arguments end with status 2."""
    parser = _arguments()
    args = parser.parse_args(argv)
    if args.people < 3:
        parser.error(f"--people {args.people}: at least 3, one for each split")
    if args.people > 100_000:
        parser.error(f"--people {args.people}: at most 100000, ids have five digits")
    if args.seed < 0 or args.workers < 1:
        parser.error("--seed must not be negative, --workers must be at least 1")
    try:
        written = generate(args.out, args.people, args.seed, args.workers)
    except ValueError as error:
        parser.error(str(error))
    total = sum(CLIPS[split] for split in splits(args.people))
    print(
        f"{args.out}: {args.people} people, {total} clips "
        f"({written} written now, {total - written} were there), table in people.csv"
    )


if __name__ == "__main__":
    main()
