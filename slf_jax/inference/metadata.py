"""Writes generated faces to files: their names, and the metadata in each PNG."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from slf_jax.cascade.settings import SampleSettings
from slf_jax.inference.exported import software
from slf_jax.inference.people import person_number
from slf_jax.inference.scales import Scale, format_scale
from slf_jax.inference.trained import Trained
from slf_jax.plots import grids

SYNTHETIC = "yes: made by a diffusion model; not a photograph, and not an identification of a person"


def describe(trained: Trained, settings: SampleSettings, stages: Sequence[str], scale: Scale, seed: int) -> dict:
    """The metadata that is common to all PNGs of a call."""
    return {
        "synthetic": SYNTHETIC,
        "seed": seed,
        "guidance": settings.guidance,
        "scale": format_scale(scale),
        "sampler": settings.sampler,
        "NFE": ", ".join(f"{name} {settings.evaluations[name]}" for name in stages),
        "stages": ", ".join(stages),
        "checkpoints": _digests(trained, stages),
        **({"guided with": _digests(trained.weak, stages)} if trained.weak else {}),
        "Software": software(),
    }


def _digests(trained: Trained, stages: Sequence[str]) -> str:
    return ", ".join(f"{name} {trained.digests[name]}" for name in stages)


def write_faces(images: np.ndarray, names: Sequence[str], out: Path, notes: Sequence[Mapping]) -> list[Path]:
    """Writes images [B, samples, H, W, 3] as PNGs with each person's notes and the sample number; returns the paths."""
    count, paths = images.shape[1], []
    for (person, sample), _ in tqdm(list(np.ndenumerate(images[:, :, 0, 0, 0])), desc="writing", unit="face"):
        path = out / (f"{names[person]}_{sample:02d}.png" if count > 1 else f"{names[person]}.png")
        grids.save_png(Image.fromarray(images[person, sample]), path, {**notes[person], "sample": sample})
        paths.append(path)
    return paths


def unique_names(ids: Sequence[str]) -> list[str]:
    """File names of clips; where two ids give the same name, a number is appended."""
    names = [_file_name(clip_id) for clip_id in ids]
    repeated = {name for name in names if names.count(name) > 1}
    return [f"{n}_{person_number(i):08x}" if n in repeated else n for n, i in zip(names, ids, strict=True)]


def _file_name(clip_id: str) -> str:
    """A clip's id as a file name without extension; an id may contain any characters."""
    name = re.sub(r"[^\w.-]+", "_", clip_id, flags=re.ASCII).lstrip(".")
    return name if name and len(name) <= 150 else f"{name[:140]}{person_number(clip_id):08x}"
