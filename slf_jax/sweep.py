"""Sweeps over guidance scales: `python -m slf_jax.sweep --workdir runs/demo --scales 0,1,2,4,8`.

All scales x people go through both stages in one compiled program, in chunks of people. Writes grid.png (rows:
people; columns: thumbnail, each scale, real face) and metrics.json (PSNR, SSIM and thumbnail error for each scale,
beside controls).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from slf_common import cli
from slf_common.errors import UserError
from slf_common.files import write_atomically
from slf_jax.evaluation.sweep import sweep, table
from slf_jax.inference import arguments, groups
from slf_jax.inference.sampler import Sampler
from slf_jax.inference.scales import Scales, format_value
from slf_jax.plots import grids

GRID_ROWS, GRID_PEOPLE = 8, 4


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.parser(
        "slf_jax.sweep",
        "Samples the same people at several guidance scales in one batch, draws and measures them.",
        [
            "python -m slf_jax.sweep --workdir runs/demo --scales 0,1,2,4,8",
            "python -m slf_jax.sweep --workdir runs/demo --scales 0,2,4:1 --samples 4 --without mel",
            "python -m slf_jax.sweep --workdir runs/vox2 --scales 0,2,4,6,8 --split validation --people 118 --chunk 32",
            "python -m slf_jax.sweep --workdir runs/demo --scales 1,2 --config.sample.sampler=heun --out heun",
            "python -m slf_jax.sweep --workdir runs/demo --scales voice=0:2:4,attributes=0:1:2 --out two_scales",
            "python -m slf_jax.sweep --workdir runs/demo --guide-with runs/demo@600:300 --scales 0,1,2,4 --out auto",
            "python -m slf_jax.sweep --workdir runs/demo --scales 1,4 --lowres-aug 0,0.05,0.1 --out noise",
        ],
    )
    arguments.add_arguments(parser)
    parser.add_argument(
        "--scales",
        required=True,
        help="comma-separated guidance scales; 0 ignores the conditions; 4:1 is 4 in base and 1 in upsampler; "
        "voice=0:2:4,attributes=0:1 sweeps a scale for each of two groups of inputs (voice, attributes, or inputs "
        "joined by +, thumbnail among them; all: all inputs; upsampling always has its image, so the thumbnail's scale "
        "acts in the base stage), the second one on top of the first; all=1:2,auto=1:2 adds the scale of "
        "--guide-with to theirs",
    )
    arguments.add_lowres_aug(parser)
    parser.add_argument("--people", type=int, default=64, help="number of speakers (default: 64)")
    args, trained = arguments.parse(parser, argv, "sweep", "grid.png", "metrics.json")
    scales, without = groups.parse(args.scales, trained, arguments.parse_names(args.without))
    scales = groups.with_lowres_aug(scales, args.lowres_aug, trained)
    if args.people < 1:
        raise UserError(f"--people {args.people}: give at least 1")
    clips = arguments.open_clips(trained, args, without)
    sampler = Sampler(trained, chunk=args.chunk, memory=args.memory)
    report, columns = sweep(
        trained, sampler, clips, scales, people=args.people, samples=args.samples, seed=args.seed, without=without
    )
    report = {"data": str(clips.directory), "split": args.split, "without": without, **report}
    grid, figures = args.out / "grid.png", args.out / "metrics.json"
    if scales.axes():
        write_scale_grid(columns, scales, args.samples, grid)
    else:
        grids.image_grid({name: images[:GRID_ROWS] for name, images in columns.items()}, grid)
    write_atomically(figures, json.dumps(report, indent=2).encode())
    print(f"{report['people']} people of split {args.split!r}, {args.samples} sample(s) of each, seed {args.seed}")
    print(f"{table(report)}\n{grid}\n{figures}")


def write_scale_grid(columns: dict[str, np.ndarray], scales: Scales, samples: int, path: Path) -> None:
    """Draws the first people with the first of the axes of `scales` down and the second one across.

    `columns`: as `evaluation.sweep.sweep` returns them; of several samples, the first one is drawn.
    """
    shown = {name: images[::samples][:GRID_PEOPLE] for name, images in columns.items()}
    thumbnails, *faces, real = shown.values()
    titles = [[f"{name} {format_value(each)}" for each in values] for name, values in scales.axes().items()]
    rows, names = titles if len(titles) > 1 else (titles[0], [next(iter(scales.axes()))])
    # [down, across, people, 128, 128, 3]
    table = np.stack(faces).reshape(len(rows), -1, *faces[0].shape)
    people = range(len(real))
    parts = {"8x8 thumbnail": np.repeat(thumbnails, len(rows), 0)}
    parts |= {name: np.concatenate([table[:, i, p] for p in people]) for i, name in enumerate(names)}
    grids.image_grid({**parts, "real": np.repeat(real, len(rows), 0)}, path, rows * len(real))


if __name__ == "__main__":
    cli.run(main)
