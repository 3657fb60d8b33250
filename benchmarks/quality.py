"""Quality against cost: `python benchmarks/quality.py --workdir runs/demo` after `make demo`.

PSNR and SSIM of validation people at rising numbers of evaluations, for each sampler: a table, JSON and a plot.
Everybody has the same thumbnail, conditions and noise each time. The knee of the curves is what `config.sample.steps`
is set to.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import matplotlib
import numpy as np
from tqdm import tqdm

from slf_jax import parallel, sampling, sweep
from slf_jax.diffusion.samplers import SAMPLERS
from slf_jax.state import Trained, load
from tfrecords import cli
from tfrecords.reader import Clips, stack
from tfrecords.writer import write_atomically

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

EVALUATIONS = (4, 8, 16, 24, 32, 64, 256)


def measure(trained: Trained, batch: dict, numbers: np.ndarray, scale: float, sampler: str, wanted: int) -> dict:
    """PSNR and SSIM of one sampler at about `wanted` evaluations a stage."""
    # Heun takes two a step, but for the last.
    steps = math.ceil(wanted / 2) if sampler == "heun" else wanted
    trained.meta.config.sample.update(sampler=sampler, steps=steps)
    draw = sampling.Sampler(trained, chunk=len(numbers))
    (images,) = draw(batch, numbers, ((scale, scale),), seed=0)
    return {"sampler": sampler, "evaluations": draw.settings.evaluations, **sweep.measure(images, batch["face"])}


def plot(rows: list[dict], bicubic: dict, title: str, path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, measured, label in zip(axes, ("psnr", "ssim"), ("PSNR (dB)", "SSIM"), strict=True):
        for sampler in SAMPLERS:
            points = [(row["evaluations"], row[measured]) for row in rows if row["sampler"] == sampler]
            axis.plot(*zip(*points, strict=True), marker="o", ms=4, label=sampler)
        axis.axhline(bicubic[measured], color="0.5", ls="--", lw=1, label="bicubic")
        axis.set_xscale("log", base=2)
        axis.set_xticks(EVALUATIONS, [str(n) for n in EVALUATIONS])
        axis.set_xlabel("evaluations a stage")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--workdir", required=True)
    arguments.add_argument("--split", default="validation")
    arguments.add_argument("--people", type=int, default=32)
    arguments.add_argument("--scale", type=float, default=1.0)
    arguments.add_argument("--samplers", nargs="+", default=list(SAMPLERS), choices=list(SAMPLERS))
    arguments.add_argument("--evaluations", nargs="+", type=int, default=list(EVALUATIONS))
    arguments.add_argument("--out", type=Path, help="folder (default: WORKDIR/quality)")
    args = arguments.parse_args()
    trained, out = load(args.workdir), args.out or Path(args.workdir) / "quality"
    parallel.use_compilation_cache(trained.meta.config.compilation_cache)
    chosen = sampling.choose_people(Clips(trained.meta.config.data.dir, args.split), args.people)
    batch, numbers = stack(chosen), np.array([sampling.person_number(clip["clip_id"]) for clip in chosen])
    bicubic = sweep.measure(sweep.bicubic(batch["face"])[:, None], batch["face"])
    cases = [(sampler, wanted) for sampler in args.samplers for wanted in args.evaluations]
    rows = [measure(trained, batch, numbers, args.scale, *case) for case in tqdm(cases, unit="setting")]
    print(f"{len(chosen)} people of split {args.split!r}, scale {args.scale:g}; bicubic {bicubic['psnr']:.2f} dB")
    for row in rows:
        print(f"{row['sampler']:12}{row['evaluations']:5}{row['psnr']:8.2f} dB{row['ssim']:8.4f}")
    report = {"people": len(chosen), "split": args.split, "scale": args.scale, "bicubic": bicubic, "rows": rows}
    write_atomically(out / "quality.json", json.dumps(report, indent=2).encode())
    plot(rows, bicubic, f"{args.workdir}: {len(chosen)} people, guidance scale {args.scale:g}", out / "quality.png")
    print(f"{out / 'quality.json'}\n{out / 'quality.png'}")


if __name__ == "__main__":
    cli.run(main)
