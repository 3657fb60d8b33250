"""Image quality against sampling cost: `python benchmarks/quality.py --workdir runs/demo` after `make demo`.

Measures PSNR and SSIM on validation people for each sampler at increasing numbers of network evaluations; writes a
table, JSON and a plot. Each person keeps the same thumbnail, conditions and noise throughout. PSNR favours blur, so a
sampler that has not converged may score above one that has. The third measure is therefore the PSNR to the converged
image: the deterministic samplers all converge to the same image from the same noise. The knee of that curve is
the number of steps that a converged image takes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from tqdm import tqdm

from slf_common import cli
from slf_common.files import write_atomically
from slf_jax.cascade.settings import sample_settings
from slf_jax.diffusion.samplers import DETERMINISTIC, SAMPLERS
from slf_jax.evaluation import controls, metrics
from tfrecords.reader import stack

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from slf_jax.inference import arguments
from slf_jax.inference.people import choose_people, person_number
from slf_jax.inference.sampler import Sampler
from slf_jax.inference.trained import Trained

EVALUATIONS = (4, 8, 16, 24, 32, 64, 256)
CONVERGED = ("heun", 256)  # sampler and evaluations that give the converged image
MEASURES = {"psnr": "PSNR (dB)", "ssim": "SSIM", "psnr_to_converged": "PSNR to converged image (dB)"}


def sample_faces(trained: Trained, batch: dict, numbers: np.ndarray, scale: float, seed: int, case: tuple) -> tuple:
    """Samples faces [B, 128, 128, 3] for a case (sampler, approximate evaluations per stage).

    Returns the actual number of evaluations and the faces.
    """
    sampler, target = case
    # Heun takes two evaluations per step, except in the last.
    steps = math.ceil(target / 2) if sampler == "heun" else target
    trained.meta.config.sample.update(sampler=sampler, steps=steps)
    program = Sampler(trained, chunk=len(numbers))
    return program.settings.evaluations["base"], program(batch, numbers, ((scale, scale),), seed)[0, :, 0]


def plot(rows: list[dict], bicubic: dict, title: str, path: Path) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for axis, (name, label) in zip(axes, MEASURES.items(), strict=True):
        for sampler in SAMPLERS:
            shown = [row for row in rows if row["sampler"] == sampler and np.isfinite(row.get(name, np.inf))]
            points = [(row["evaluations"], row[name]) for row in shown]
            axis.plot(*zip(*points, strict=True) if points else ((), ()), marker="o", ms=4, label=sampler)
        if name in bicubic:
            axis.axhline(bicubic[name], color="0.5", ls="--", lw=1, label="bicubic")
        axis.set_xscale("log", base=2)
        axis.set_xticks(EVALUATIONS, [str(n) for n in EVALUATIONS])
        axis.set_xlabel("evaluations per stage")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def measure(trained: Trained, clips: list[dict], samplers: Sequence[str], scale: float, seed: int) -> list[dict]:
    """Returns a row of measures for each sampler and number of evaluations, sorted by both."""
    batch, numbers = stack(clips), np.array([person_number(clip["clip_id"]) for clip in clips])
    cases = [(name, n) for name in samplers for n in EVALUATIONS if (name, n) != CONVERGED]
    converged, rows = np.zeros(0), []
    for case in tqdm([CONVERGED, *cases], unit="setting"):
        evaluations, faces = sample_faces(trained, batch, numbers, scale, seed, case)
        row = {"sampler": case[0], "evaluations": evaluations, **score(faces, batch["face"])}
        if case == CONVERGED:
            converged = faces.astype(float)
        elif case[0] != "ancestral":
            # Pool the squared error over all faces: a single one may agree in every pixel.
            error = np.square(faces - converged).mean()
            row["psnr_to_converged"] = float(20 * np.log10(255 / np.sqrt(error + 1e-9)))
        rows.append(row)
    return sorted(rows, key=lambda row: (row["sampler"], row["evaluations"]))


def score(faces: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """Mean PSNR and SSIM."""
    return {name: float(getattr(metrics, name)(faces, real).mean()) for name in ("psnr", "ssim")}


def main() -> None:
    parser = cli.parser(
        "benchmarks.quality", __doc__, ["python benchmarks/quality.py --workdir runs/demo --split validation"]
    )
    arguments.add_arguments(parser)
    parser.set_defaults(split="validation")
    parser.add_argument("--people", type=int, default=24, help="number of people (default: 24)")
    parser.add_argument("--scale", type=float, default=1.0, help="guidance scale (default: 1)")
    parser.add_argument(
        "--samplers", default="", help="comma-separated samplers (default: all that the system can use)"
    )
    args, trained = arguments.parse(parser, None, "quality", "quality.json", "quality.png")
    clips = choose_people(arguments.open_clips(trained, args, ()), args.people)
    real = np.stack([clip["face"] for clip in clips])
    bicubic = score(controls.bicubic(real), real)
    usable = DETERMINISTIC if sample_settings(trained.meta.config).flows else tuple(SAMPLERS)
    samplers = arguments.parse_names(args.samplers, "--samplers") or usable
    rows = measure(trained, clips, samplers, args.scale, args.seed)
    title = f"{len(clips)} people of the {args.split} split, guidance scale {args.scale:g}"
    print(f"{title}; bicubic {bicubic['psnr']:.2f} dB")
    for row in rows:
        distance = f"{row['psnr_to_converged']:10.1f} dB" if "psnr_to_converged" in row else ""
        print(f"{row['sampler']:12}{row['evaluations']:5}{row['psnr']:8.2f} dB{row['ssim']:8.4f}{distance}")
    report = {"people": len(clips), "split": args.split, "scale": args.scale, "bicubic": bicubic, "rows": rows}
    write_atomically(args.out / "quality.json", json.dumps(report, indent=2).encode())
    plot(rows, bicubic, title, args.out / "quality.png")
    print(f"{args.out / 'quality.json'}\n{args.out / 'quality.png'}")


if __name__ == "__main__":
    cli.run(main)
