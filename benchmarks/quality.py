"""Quality against cost: `python benchmarks/quality.py --workdir runs/demo` after `make demo`.

PSNR and SSIM of validation people at rising numbers of evaluations, for each sampler: a table, JSON and a plot.
Everybody has the same thumbnail, conditions and noise each time. PSNR favours what is blurred, so samplers that have
not arrived may score above those that have. Hence the third measure: how near a face is (PSNR) to the one that the same
noise leads to in the end, which the samplers without noise of their own all converge to. Its knee is what
`config.sample.steps` is set to.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import matplotlib
import numpy as np
from tqdm import tqdm

from slf_common import cli
from slf_common.files import write_atomically
from slf_jax.diffusion.samplers import SAMPLERS
from slf_jax.evaluation import controls, metrics
from tfrecords.reader import stack

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from slf_jax.inference import arguments
from slf_jax.inference.people import choose_people, person_number
from slf_jax.inference.sampler import Sampler
from slf_jax.inference.trained import Trained

EVALUATIONS = (4, 8, 16, 24, 32, 64, 256)
END = ("heun", 256)  # what "in the end" is
MEASURES = {"psnr": "PSNR (dB)", "ssim": "SSIM", "to_the_end": "PSNR to where it ends (dB)"}


def draw(trained: Trained, batch: dict, numbers: np.ndarray, scale: float, seed: int, case: tuple) -> tuple:
    """Evaluations and faces [B, 128, 128, 3] of one sampler at about so many evaluations a stage."""
    sampler, wanted = case
    # Heun takes two a step, but for the last.
    steps = math.ceil(wanted / 2) if sampler == "heun" else wanted
    trained.meta.config.sample.update(sampler=sampler, steps=steps)
    program = Sampler(trained, chunk=len(numbers))
    return program.settings.evaluations, program(batch, numbers, ((scale, scale),), seed)[0, :, 0]


def plot(rows: list[dict], bicubic: dict, title: str, path: Path) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for axis, (name, label) in zip(axes, MEASURES.items(), strict=True):
        for sampler in SAMPLERS:
            mine = [row for row in rows if row["sampler"] == sampler and np.isfinite(row.get(name, np.inf))]
            points = [(row["evaluations"], row[name]) for row in mine]
            axis.plot(*zip(*points, strict=True) if points else ((), ()), marker="o", ms=4, label=sampler)
        if name in bicubic:
            axis.axhline(bicubic[name], color="0.5", ls="--", lw=1, label="bicubic")
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
    parser = cli.parser(
        "benchmarks.quality", __doc__, ["python benchmarks/quality.py --workdir runs/demo --split validation"]
    )
    arguments.add_arguments(parser)
    parser.set_defaults(split="validation")
    parser.add_argument("--people", type=int, default=24, help="default: 24")
    parser.add_argument("--scale", type=float, default=1.0, help="default: 1")
    parser.add_argument("--samplers", default=",".join(SAMPLERS), help="default: all")
    args, trained = arguments.parse(parser, None, "quality", "quality.json", "quality.png")
    out = args.out
    chosen = choose_people(arguments.open_clips(trained, args, ()), args.people)
    batch, numbers = stack(chosen), np.array([person_number(clip["clip_id"]) for clip in chosen])
    real, rows = batch["face"], []
    bicubic = {name: float(getattr(metrics, name)(controls.bicubic(real), real).mean()) for name in ("psnr", "ssim")}
    cases = [
        END,
        *(
            (name, n)
            for name in arguments.parse_names(args.samplers, "--samplers")
            for n in EVALUATIONS
            if (name, n) != END
        ),
    ]
    end = np.zeros(0)
    for case in tqdm(cases, unit="setting"):
        evaluations, faces = draw(trained, batch, numbers, args.scale, args.seed, case)
        end = faces if case == END else end
        row = {"sampler": case[0], "evaluations": evaluations}
        row |= {name: float(getattr(metrics, name)(faces, real).mean()) for name in ("psnr", "ssim")}
        if case != END and case[0] != "ancestral":
            # Of the mean squared error of all: single faces may agree in every pixel.
            row["to_the_end"] = float(20 * np.log10(255 / np.sqrt(np.square(faces - end.astype(float)).mean() + 1e-9)))
        rows.append(row)
    rows.sort(key=lambda row: (row["sampler"], row["evaluations"]))
    print(f"{len(chosen)} people of split {args.split!r}, scale {args.scale:g}; bicubic {bicubic['psnr']:.2f} dB")
    for row in rows:
        near = f"{row['to_the_end']:10.1f} dB" if "to_the_end" in row else ""
        print(f"{row['sampler']:12}{row['evaluations']:5}{row['psnr']:8.2f} dB{row['ssim']:8.4f}{near}")
    report = {"people": len(chosen), "split": args.split, "scale": args.scale, "bicubic": bicubic, "rows": rows}
    write_atomically(out / "quality.json", json.dumps(report, indent=2).encode())
    plot(rows, bicubic, f"{len(chosen)} people of {args.split}, guidance scale {args.scale:g}", out / "quality.png")
    print(f"{out / 'quality.json'}\n{out / 'quality.png'}")


if __name__ == "__main__":
    cli.run(main)
