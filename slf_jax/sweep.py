"""A sweep over guidance scales: `python -m slf_jax.sweep --workdir runs/demo --scales 0,1,2,4,8`.

All scales x people go through both stages in one compiled program, in chunks of people. Writes grid.png (rows:
people; columns: guide, each scale, real face) and metrics.json (PSNR, SSIM, guide error for each scale, beside
controls).
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from slf_jax import cascade, figures, parallel
from slf_jax.evaluation import metrics
from slf_jax.state import Trained, load
from tfrecords import cli
from tfrecords.reader import Clips, stack
from tfrecords.writer import write_atomically

GRID_ROWS = 8
CONTROL_SCALE = 2.0  # at the scale nearest to this one, everybody also gets another person's conditions


Scale = tuple[float, float]  # of base and upsampler


def parse_scales(text: str) -> tuple[Scale, ...]:
    """`"0,2.5,4:1"` to pairs; one number serves both stages. `UserError` if empty, negative or no numbers."""
    try:
        scales = [tuple(float(number) for number in part.split(":")) for part in text.split(",") if part.strip()]
    except ValueError:
        raise cli.UserError(f"--scales {text!r}: give numbers parted by commas, as in --scales 0,1,2,4") from None
    if not scales:
        raise cli.UserError("--scales is empty; give at least one, as in --scales 0,1,2,4")
    if any(len(scale) > 2 for scale in scales):
        raise cli.UserError(f"--scales {text}: a scale is one number, or BASE:UPSAMPLER as in 4:1")
    if any(not math.isfinite(number) or number < 0 for scale in scales for number in scale):
        raise cli.UserError(f"--scales {text}: a guidance scale is a finite number of at least 0")
    return tuple((scale[0], scale[-1]) for scale in scales)


def spell(scale: Scale) -> str:
    """`2.5`, or `4:1` where the stages differ."""
    return f"{scale[0]:g}" if scale[0] == scale[1] else f"{scale[0]:g}:{scale[1]:g}"


def person_number(clip_id: str) -> int:
    """A number that a clip's noise is drawn from, whatever else is sampled with it."""
    return zlib.crc32(clip_id.encode()) & 0x7FFFFFFF


class Sampler:
    """A trained system compiled for chunks of `chunk` people at a fixed number of scales."""

    def __init__(self, trained: Trained, chunk: int) -> None:
        devices = jax.device_count()
        self.chunk = math.ceil(chunk / devices) * devices
        self.settings = cascade.sample_settings(trained.config)
        self._mesh = parallel.make_mesh()
        self._params = parallel.replicate(self._mesh, trained.params)
        self._system, self._program = trained.system, jax.jit(self._run)

    def _run(
        self, params: Mapping, clips: Mapping, people: jax.Array, guided: jax.Array, seed: int, scales: jax.Array
    ) -> jax.Array:
        noise = cascade.person_noise(seed, people)
        guides = cascade.make_guide(cascade.to_float(clips["face"]))
        records = {key: value for key, value in clips.items() if key != "face"}
        return self._system.sample(params, records, guides, guided, noise, scales, self.settings)

    def __call__(
        self, clips: Mapping[str, np.ndarray], people: np.ndarray, scales: Sequence[Scale], seed: int, *,
        guided: bool = True, progress: str = "",
    ) -> np.ndarray:  # fmt: skip
        """uint8 images [S, B, 128, 128, 3]; `clips` are records of B people, `people` their numbers."""
        count, parts = len(people), []
        for first in tqdm(range(0, count, self.chunk), desc=progress, unit="chunk", disable=not progress):
            # The last chunk is filled up with its first person, so that nothing compiles twice.
            places = np.arange(first, first + self.chunk)
            places = np.where(places < count, places, first)
            batch, numbers = parallel.split(
                self._mesh, "shard_map", ({k: v[places] for k, v in clips.items()}, people[places])
            )
            present = jnp.full(self.chunk, float(guided))
            images = self._program(self._params, batch, numbers, present, seed, jnp.array(scales, jnp.float32))
            parts.append(figures.to_uint8(images)[:, : count - first])
        return np.concatenate(parts, 1)


def choose_people(clips: Clips, count: int) -> list[dict]:
    """The first clip of each of the first `count` speakers."""
    first: dict[str, dict] = {}
    for i in range(len(clips)):
        clip = clips[i]
        first.setdefault(clip["speaker_id"], clip)
        if len(first) == count:
            break
    return list(first.values())


def sweep(workdir: Path, scales: Sequence[Scale], *, data: str, split: str, people: int, seed: int, chunk: int) -> dict:
    """Samples, measures and draws; returns what metrics.json holds."""
    trained = load(workdir)
    parallel.use_compilation_cache(trained.config.compilation_cache)
    data = data or trained.config.data.dir
    chosen = choose_people(Clips(data, split), people)
    batch, numbers = stack(chosen), np.array([person_number(clip["clip_id"]) for clip in chosen])
    sampler = Sampler(trained, min(chunk, len(chosen)))
    images = sampler(batch, numbers, scales, seed, progress=f"{len(scales)} scales x {len(chosen)} people")
    # Everybody's own thumbnail and noise with the next person's voice and attributes.
    at = min(range(len(scales)), key=lambda i: abs(scales[i][0] - CONTROL_SCALE))
    others = {key: value if key == "face" else np.roll(value, 1, 0) for key, value in batch.items()}
    swapped = sampler(others, numbers, scales[at : at + 1], seed, progress="control: another person's conditions")
    real = batch["face"]
    report = {
        "data": data,
        "split": split,
        "people": len(chosen),
        "seed": seed,
        "sampler": trained.config.sample.to_dict(),
        "checkpoints": trained.digests,
        "scales": {spell(scale): measure(image, real) for scale, image in zip(scales, images, strict=True)},
        "controls": {
            "other_persons_conditions": {"scale": spell(scales[at]), **measure(swapped[0], real)},
            "bicubic": measure(bicubic(real), real),
            "mean_face": measure(np.broadcast_to(mean_face(Clips(data, "train")), real.shape), real),
        },
    }
    guides = figures.enlarge(figures.to_uint8(cascade.make_guide(cascade.to_float(jnp.asarray(real)))), 128)
    page = np.stack([guides, *images, real], 1)[:GRID_ROWS]
    figures.image_grid(
        page, workdir / "sweep" / "grid.png", ["8x8 guide", *(f"scale {spell(scale)}" for scale in scales), "real"]
    )
    write_atomically(workdir / "sweep" / "metrics.json", json.dumps(report, indent=2).encode())
    return report


def measure(images: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """Means over people of PSNR (dB), SSIM and guide error (of 255)."""
    return {
        "psnr": float(metrics.psnr(images, real).mean()),
        "ssim": float(metrics.ssim(images, real).mean()),
        "guide_error": float(metrics.guide_error(images, real).mean()),
    }


def bicubic(faces: np.ndarray) -> np.ndarray:
    """What the guides of uint8 faces [B, 128, 128, 3] look like up-sampled: the control every system must beat."""
    guides = cascade.make_guide(cascade.to_float(jnp.asarray(faces)))
    return figures.to_uint8(cascade.upsample(guides, faces.shape[1]))


def mean_face(clips: Clips) -> np.ndarray:
    """The mean of up to 1000 faces, uint8."""
    places = np.linspace(0, len(clips) - 1, min(1000, len(clips))).astype(int)
    return np.mean([clips[int(i)]["face"] for i in places], 0, dtype=np.float64).round().astype(np.uint8)


def table(report: dict) -> str:
    """The report's figures for reading."""
    controls = dict(report["controls"])
    other = controls.pop("other_persons_conditions")
    rows = {f"scale {scale}": figures for scale, figures in report["scales"].items()}
    rows[f"scale {other['scale']}, another person's conditions"] = other
    rows |= {name.replace("_", " "): figures for name, figures in controls.items()}
    lines = ["{:38} {:>6} {:>6} {:>11}".format("", "PSNR", "SSIM", "guide error")]
    lines += [f"{name:38} {m['psnr']:6.2f} {m['ssim']:6.3f} {m['guide_error']:11.2f}" for name, m in rows.items()]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = cli.parser(
        "slf_jax.sweep",
        "Samples the same people at several guidance scales in one batch, draws and measures them.",
        [
            "python -m slf_jax.sweep --workdir runs/demo --scales 0,1,2,4,8",
            "python -m slf_jax.sweep --workdir runs/vox2 --scales 0,2,4,6,8 --split validation --people 118 --chunk 32",
        ],
    )
    arguments.add_argument("--workdir", required=True, type=Path, help="run directory of slf_jax.train")
    arguments.add_argument(
        "--scales",
        required=True,
        help="guidance scales, parted by commas; 0 ignores the conditions; 4:1 is 4 in base and 1 in upsampler",
    )
    arguments.add_argument("--data", default="", help="dataset folder (default: the one it was trained on)")
    arguments.add_argument("--split", default="test")
    arguments.add_argument("--people", type=int, default=64, help="how many speakers (default: 64)")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--chunk", type=int, default=16, help="people sampled together; bounds memory (default: 16)")
    args = arguments.parse_args(argv)
    if min(args.people, args.chunk) < 1:
        raise cli.UserError("--people and --chunk are at least 1")
    report = sweep(
        args.workdir, parse_scales(args.scales), data=args.data, split=args.split,
        people=args.people, seed=args.seed, chunk=args.chunk,
    )  # fmt: skip
    print(f"{report['people']} people of split {report['split']!r}, seed {report['seed']}")
    print(table(report))
    print(f"{args.workdir / 'sweep' / 'grid.png'}\n{args.workdir / 'sweep' / 'metrics.json'}")


if __name__ == "__main__":
    cli.run(main)
