"""Writes a population of synthetic talking people as mp4 files, with a CSV of their attributes.

The folder has VoxCeleb2's layout, OUT/p00042/00001/00001.mp4; OUT/people.csv gives each person's age, gender,
ethnicity and split. Existing files are kept: run the same command again to continue an interrupted run.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from extract.talkers.population import CLIPS, generate, splits
from slf_common import cli
from slf_common.errors import UserError
from slf_common.files import check_writable, local_path


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    arguments = cli.parser(
        "extract.talkers",
        __doc__,
        [
            "python -m extract.talkers --out data/demo/videos",
            "python -m extract.talkers --out /tmp/few --people 64 --workers 2",
        ],
    )
    arguments.add_argument("--out", type=local_path, required=True, help="folder for clips and people.csv")
    arguments.add_argument("--people", type=int, default=1024, help="number of people, at least 3 (default: 1024)")
    arguments.add_argument("--seed", type=int, default=0, help="seed of the population (default: 0)")
    cores = os.cpu_count() or 1
    arguments.add_argument("--workers", type=int, default=cores, help="processes (default: all cores)")
    args = arguments.parse_args(argv)
    if not 3 <= args.people <= 100_000:
        raise UserError(f"--people {args.people}: must be from 3 (one for each split) to 100000 (ids have five digits)")
    if args.seed < 0 or args.workers < 1:
        raise UserError("--seed must be at least 0, --workers at least 1")
    check_writable(args.out, "people.csv")
    written = generate(args.out, args.people, args.seed, args.workers)
    total = sum(CLIPS[split] for split in splits(args.people))
    print(
        f"{args.out}: {args.people} people, {total} clips "
        f"({written} written now, {total - written} already there), attributes in people.csv"
    )


if __name__ == "__main__":
    cli.run(main)
