"""Summarises a dataset as text and a figure: counts, attributes, missing rows, failures, faces, one clip's features."""

from __future__ import annotations

from collections.abc import Sequence

from extract.contents import describe, draw, read_contents
from slf_common import cli
from slf_common.files import check_writable_file, local_path
from tfrecords.reader import Clips, first_split


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    arguments = cli.parser(
        "extract.inspect",
        __doc__,
        [
            "python -m extract.inspect --data data/demo/records",
            "python -m extract.inspect --data data/demo/records --split test --clip p00900/00001/00001",
        ],
    )
    arguments.add_argument("--data", required=True, type=local_path, metavar="DIR", help="dataset folder")
    arguments.add_argument("--split", help="split whose faces are drawn (default: train if it exists)")
    arguments.add_argument("--clip", help="clip whose constituents are drawn (default: the first in the split)")
    arguments.add_argument("--out", default="inspect.png", type=local_path, metavar="PNG", help="figure to write")
    args = arguments.parse_args(argv)
    check_writable_file(args.out)
    contents = read_contents(args.data)
    clips = Clips(args.data, args.split or first_split(args.data))
    print(describe(args.data, contents))
    draw(contents, clips, clips.find(args.clip), args.out)
    print(f"figure: {args.out}")


if __name__ == "__main__":
    cli.run(main)
