"""Samples the same people at several guidance scales and measures the faces."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from slf_jax.cascade.images import downscale
from slf_jax.evaluation import controls, metrics
from slf_jax.inference.people import choose_people, person_number
from slf_jax.inference.sampler import Sampler
from slf_jax.inference.scales import Scales
from slf_jax.inference.trained import Trained
from tfrecords.reader import Absent, Clips, stack

CONTROL_SCALE = 2.0  # the control with another person's conditions is run at the scale nearest to this one


def sweep(
    trained: Trained, sampler: Sampler, clips: Clips, scales: Scales, *, people: int, samples: int, seed: int,
    without: Sequence[str] = (),
) -> tuple[dict, dict[str, np.ndarray]]:  # fmt: skip
    """Samples and measures the first clip of each of the first `people` speakers.

    Returns the content of metrics.json, and images by name, uint8 [people x samples, h, w, 3]: the thumbnail, one for
    each scale, and the real face.
    """
    chosen = choose_people(clips, people)
    batch, numbers = stack(chosen), np.array([person_number(clip["clip_id"]) for clip in chosen])
    progress = f"{len(scales)} scales x {len(chosen)} people x {samples}"
    sample = functools.partial(sampler, samples=samples, without=without, groups=scales.groups)
    images = sample(batch, numbers, scales.strengths, seed, progress=progress, numbers=scales.numbers)
    # Each person's own thumbnail and noise with another person's voice and attributes.
    distances = [sum(abs(scale - CONTROL_SCALE) for scale in strengths) for strengths in scales.strengths]
    control = dataclasses.replace(scales, points=[scales.points[int(np.argmin(distances))]])
    others = controls.swap_people(batch, [key for key in batch if key != "face"])
    what = "control: another person's conditions"
    swapped = sample(others, numbers, control.strengths, seed, progress=what, numbers=control.numbers)
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
        "guided_with": trained.weak.digests if trained.weak else None,
        "scales": {scales.key(s): metrics.fidelity(i, real) for s, i in zip(scales.points, images, strict=True)},
        "controls": {
            "other_persons_conditions": {"scale": scales.key(control.points[0]), **metrics.fidelity(swapped[0], real)},
            **{name: metrics.fidelity(image[:, None], real) for name, image in references.items()},
        },
    }
    by_scale = {
        scales.label(point): image.reshape(-1, *image.shape[2:])
        for point, image in zip(scales.points, images, strict=True)
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
