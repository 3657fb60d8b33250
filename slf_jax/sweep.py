"""Sweeps over guidance scales: `python -m slf_jax.sweep --workdir runs/demo --scales 0,1,2,4,8`.

All scales x people go through both stages in one compiled program, in chunks of people. Writes grid.png (rows:
people; columns: thumbnail, each scale, real face) and metrics.json (PSNR, SSIM and thumbnail error for each scale,
beside controls).
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from slf_common import cli
from slf_common.errors import UserError
from slf_common.files import write_atomically
from slf_jax.evaluation.sweep import sweep, table
from slf_jax.inference import arguments
from slf_jax.inference.sampler import Sampler
from slf_jax.inference.scales import parse_scales
from slf_jax.plots import grids

GRID_ROWS = 8


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.parser(
        "slf_jax.sweep",
        "Samples the same people at several guidance scales in one batch, draws and measures them.",
        [
            "python -m slf_jax.sweep --workdir runs/demo --scales 0,1,2,4,8",
            "python -m slf_jax.sweep --workdir runs/demo --scales 0,2,4:1 --samples 4 --without mel",
            "python -m slf_jax.sweep --workdir runs/vox2 --scales 0,2,4,6,8 --split validation --people 118 --chunk 32",
            "python -m slf_jax.sweep --workdir runs/demo --scales 1,2 --config.sample.sampler=heun --out heun",
        ],
    )
    arguments.add_arguments(parser)
    parser.add_argument(
        "--scales",
        required=True,
        help="comma-separated guidance scales; 0 ignores the conditions; 4:1 is 4 in base and 1 in upsampler",
    )
    parser.add_argument("--people", type=int, default=64, help="number of speakers (default: 64)")
    args, trained = arguments.parse(parser, argv, "sweep", "grid.png", "metrics.json")
    scales, without = parse_scales(args.scales), arguments.parse_names(args.without)
    if args.people < 1:
        raise UserError(f"--people {args.people}: give at least 1")
    clips = arguments.open_clips(trained, args, without)
    sampler = Sampler(trained, chunk=args.chunk, memory=args.memory)
    report, columns = sweep(
        trained, sampler, clips, scales, people=args.people, samples=args.samples, seed=args.seed, without=without
    )
    report = {"data": str(clips.directory), "split": args.split, "without": without, **report}
    grid, figures = args.out / "grid.png", args.out / "metrics.json"
    grids.image_grid({name: images[:GRID_ROWS] for name, images in columns.items()}, grid)
    write_atomically(figures, json.dumps(report, indent=2).encode())
    print(f"{report['people']} people of split {args.split!r}, {args.samples} sample(s) of each, seed {args.seed}")
    print(f"{table(report)}\n{grid}\n{figures}")


if __name__ == "__main__":
    cli.run(main)
