"""Draws a training run as one HTML page: `python -m slf_jax.report --workdir runs/demo`.

Draws metrics.jsonl, the previews, the config and its changes into one HTML file without scripts or external files.
The run may still be training; the page then shows its progress.
"""

from __future__ import annotations

from collections.abc import Sequence

from slf_common import cli
from slf_common.files import check_writable_file, local_path, write_atomically
from slf_jax.training.report import page


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.parser(
        "slf_jax.report",
        "Draws the curves and previews of a training run, finished or not, into one HTML page.",
        [
            "python -m slf_jax.report --workdir runs/demo",
            "python -m slf_jax.report --workdir runs/vox2 --out vox2.html",
            "watch -n 600 python -m slf_jax.report --workdir runs/vox2    (every ten minutes)",
        ],
    )
    parser.add_argument("--workdir", type=local_path, required=True, metavar="RUN", help="directory of a training run")
    parser.add_argument("--out", type=local_path, metavar="FILE", help="page to write (default: RUN/report.html)")
    args = parser.parse_args(argv)
    out = args.out or args.workdir / "report.html"
    check_writable_file(out)
    text = page(args.workdir).encode()
    write_atomically(out, text)
    print(f"{out} ({len(text) / 1e6:.1f} MB)")


if __name__ == "__main__":
    cli.run(main)
