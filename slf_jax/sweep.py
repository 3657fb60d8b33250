"""A sweep over guidance scales: `python -m slf_jax.sweep --workdir runs/demo --scales 0,1,2,4,8`.

All scales x people go through both stages in one compiled program, in chunks of people. Writes grid.png (rows:
people; columns: guide, each scale, real face) and metrics.json (PSNR, SSIM, guide error for each scale, beside
controls).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from slf_common import cli
from slf_common.errors import UserError
from slf_common.files import write_atomically
from slf_jax import cascade, figures, sampling
from slf_jax.evaluation import controls, metrics
from slf_jax.sampling import Sampler, Scale, spell
from slf_jax.state import Trained
from tfrecords.reader import Absent, Clips, stack

GRID_ROWS = 8
CONTROL_SCALE = 2.0  # at the scale nearest to this one, everybody also gets another person's conditions


def sweep(
    trained: Trained, sampler: Sampler, clips: Clips, scales: Sequence[Scale], *, people: int, samples: int, seed: int,
    without: Sequence[str] = (),
) -> tuple[dict, np.ndarray]:  # fmt: skip
    """Samples and measures; returns what metrics.json holds, and the grid [rows, columns, 128, 128, 3]."""
    chosen = sampling.choose_people(clips, people)
    batch, numbers = stack(chosen), np.array([sampling.person_number(clip["clip_id"]) for clip in chosen])
    progress = f"{len(scales)} scales x {len(chosen)} people x {samples}"
    images = sampler(batch, numbers, scales, seed, samples=samples, without=without, progress=progress)
    # Everybody's own thumbnail and noise with the next person's voice and attributes.
    at = min(range(len(scales)), key=lambda i: abs(scales[i][0] - CONTROL_SCALE))
    others = {key: value if key == "face" else np.roll(value, 1, 0) for key, value in batch.items()}
    progress = "control: another person's conditions"
    swapped = sampler(others, numbers, scales[at : at + 1], seed, samples=samples, without=without, progress=progress)
    real = batch["face"]
    references = {"bicubic": controls.bicubic(real)}
    with contextlib.suppress(Absent):  # what it was trained on may be elsewhere by now
        mean = controls.mean_face(Clips(trained.meta.config.data.dir, "train"))
        references["mean_face"] = np.broadcast_to(mean, real.shape)
    report = {
        "people": len(chosen),
        "samples": samples,
        "seed": seed,
        "sampler": {**trained.meta.config.sample.to_dict(), "evaluations": sampler.settings.evaluations},
        "checkpoints": trained.digests,
        "scales": {spell(scale): measure(image, real) for scale, image in zip(scales, images, strict=True)},
        "controls": {
            "other_persons_conditions": {"scale": spell(scales[at]), **measure(swapped[0], real)},
            **{name: measure(image[:, None], real) for name, image in references.items()},
        },
    }
    guides = figures.enlarge(np.asarray(cascade.to_uint8(cascade.make_guide(cascade.to_float(jnp.asarray(real))))), 128)
    guides, reals = (np.broadcast_to(x[:, None], images.shape[1:]) for x in (guides, real))
    page = np.stack([guides, *images, reals], 2)
    return report, page.reshape(-1, *page.shape[2:])[:GRID_ROWS]


def measure(images: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """Means over people and samples of PSNR (dB), SSIM and guide error (of 255), of images [B, samples, H, W, 3].

    With several samples also the standard deviation of each sample's mean over people.
    """
    kinds = {"psnr": metrics.psnr, "ssim": metrics.ssim, "guide_error": metrics.guide_error}
    found = {}
    for name, kind in kinds.items():
        each = [float(kind(images[:, i], real).mean()) for i in range(images.shape[1])]
        found[name] = float(np.mean(each))
        if len(each) > 1:
            found[f"{name}_sd"] = float(np.std(each, ddof=1))
    return found


def table(report: dict) -> str:
    """The report's figures for reading."""
    references = dict(report["controls"])
    other = references.pop("other_persons_conditions")
    rows = {f"scale {scale}": figures for scale, figures in report["scales"].items()}
    rows[f"scale {other['scale']}, another person's conditions"] = other
    rows |= {name.replace("_", " "): figures for name, figures in references.items()}
    lines = ["{:38} {:>6} {:>6} {:>11}".format("", "PSNR", "SSIM", "guide error")]
    lines += [f"{name:38} {m['psnr']:6.2f} {m['ssim']:6.3f} {m['guide_error']:11.2f}" for name, m in rows.items()]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = cli.parser(
        "slf_jax.sweep",
        "Samples the same people at several guidance scales in one batch, draws and measures them.",
        [
            "python -m slf_jax.sweep --workdir runs/demo --scales 0,1,2,4,8",
            "python -m slf_jax.sweep --workdir runs/demo --scales 0,2,4:1 --samples 4 --without mel",
            "python -m slf_jax.sweep --workdir runs/vox2 --scales 0,2,4,6,8 --split validation --people 118 --chunk 32",
            "python -m slf_jax.sweep --workdir runs/demo --scales 1,2 --config.sample.sampler=heun --out heun",
        ],
    )
    sampling.add_arguments(arguments)
    arguments.add_argument(
        "--scales",
        required=True,
        help="comma-separated guidance scales; 0 ignores the conditions; 4:1 is 4 in base and 1 in upsampler",
    )
    arguments.add_argument("--people", type=int, default=64, help="how many speakers (default: 64)")
    args, trained = sampling.parse(arguments, argv, "sweep", "grid.png", "metrics.json")
    scales, without, out = sampling.parse_scales(args.scales), sampling.names(args.without), args.out
    if args.people < 1:
        raise UserError(f"--people {args.people}: give at least 1")
    clips = sampling.open_clips(trained, args, without)
    sampler = Sampler(trained, chunk=args.chunk, memory=args.memory)
    report, page = sweep(
        trained, sampler, clips, scales, people=args.people, samples=args.samples, seed=args.seed, without=without
    )
    report = {"data": str(clips.directory), "split": args.split, "without": without, **report}
    figures.image_grid(page, out / "grid.png", ["8x8 guide", *(f"scale {spell(scale)}" for scale in scales), "real"])
    write_atomically(out / "metrics.json", json.dumps(report, indent=2).encode())
    print(f"{report['people']} people of split {args.split!r}, {args.samples} sample(s) of each, seed {args.seed}")
    print(table(report))
    print(f"{out / 'grid.png'}\n{out / 'metrics.json'}")


if __name__ == "__main__":
    cli.run(main)
