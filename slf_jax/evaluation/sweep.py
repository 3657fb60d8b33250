"""Samples the same people at several guidance scales and measures the faces."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np

from slf_jax.cascade.images import downscale
from slf_jax.evaluation import controls, metrics
from slf_jax.inference.people import choose_people, person_number
from slf_jax.inference.sampler import Sampler
from slf_jax.inference.scales import Scale, format_scale
from slf_jax.inference.trained import Trained
from tfrecords.reader import Absent, Clips, stack

CONTROL_SCALE = 2.0  # the control with another person's conditions is run at the scale nearest to this one


def sweep(
    trained: Trained, sampler: Sampler, clips: Clips, scales: Sequence[Scale], *, people: int, samples: int, seed: int,
    without: Sequence[str] = (),
) -> tuple[dict, dict[str, np.ndarray]]:  # fmt: skip
    """Samples and measures the first clip of each of the first `people` speakers.

    Returns the content of metrics.json, and the columns of the grid by name: uint8 images [people x samples, h, w, 3].
    """
    chosen = choose_people(clips, people)
    batch, numbers = stack(chosen), np.array([person_number(clip["clip_id"]) for clip in chosen])
    progress = f"{len(scales)} scales x {len(chosen)} people x {samples}"
    images = sampler(batch, numbers, scales, seed, samples=samples, without=without, progress=progress)
    # Each person's own thumbnail and noise with another person's voice and attributes.
    at = min(range(len(scales)), key=lambda i: abs(scales[i][0] - CONTROL_SCALE))
    others = controls.swap_people(batch, [key for key in batch if key != "face"])
    progress = "control: another person's conditions"
    swapped = sampler(others, numbers, scales[at : at + 1], seed, samples=samples, without=without, progress=progress)
    real = batch["face"]
    references = {"bicubic": controls.bicubic(real)}
    with contextlib.suppress(Absent):  # the training data may have been moved
        mean = controls.mean_face(Clips(trained.meta.config.data.dir, "train"))
        references["mean_face"] = np.broadcast_to(mean, real.shape)
    report = {
        "people": len(chosen),
        "samples": samples,
        "seed": seed,
        "sampler": sampler.settings.to_json(),
        "checkpoints": trained.digests,
        "scales": {format_scale(s): metrics.fidelity(image, real) for s, image in zip(scales, images, strict=True)},
        "controls": {
            "other_persons_conditions": {"scale": format_scale(scales[at]), **metrics.fidelity(swapped[0], real)},
            **{name: metrics.fidelity(image[:, None], real) for name, image in references.items()},
        },
    }
    by_scale = {
        f"scale {format_scale(scale)}": image.reshape(-1, *image.shape[2:])
        for scale, image in zip(scales, images, strict=True)
    }
    thumbnails, reals = (np.repeat(column, samples, 0) for column in (downscale(real), real))
    return report, {"8x8 thumbnail": thumbnails, **by_scale, "real": reals}


def table(report: dict) -> str:
    """The results of a sweep as a text table."""
    references = dict(report["controls"])
    other = references.pop("other_persons_conditions")
    rows = {f"scale {scale}": figures for scale, figures in report["scales"].items()}
    rows[f"scale {other['scale']}, another person's conditions"] = other
    rows |= {name.replace("_", " "): figures for name, figures in references.items()}
    lines = ["{:38} {:>6} {:>6} {:>15}".format("", "PSNR", "SSIM", "thumbnail error")]
    lines += [f"{name:38} {m['psnr']:6.2f} {m['ssim']:6.3f} {m['thumbnail_error']:15.2f}" for name, m in rows.items()]
    return "\n".join(lines)
