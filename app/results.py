"""Writes the faces of a request as files: marked PNGs with metadata, a ZIP of them, the feature matrix."""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from app.marks import mark
from app.system import FaceSystem, Person
from slf_jax.cascade.settings import SampleSettings
from slf_jax.inference.scales import Scale, format_scale
from slf_jax.plots import grids
from slf_jax.plots.matrix import feature_matrix


@dataclasses.dataclass(frozen=True)
class Request:
    """How to draw: guidance scales, faces at each scale, seed of the noise and settings of the sampler."""

    scales: tuple[Scale, ...]
    samples: int
    seed: int
    settings: SampleSettings


@dataclasses.dataclass(frozen=True)
class Faces:
    """Files of faces with captions, ordered by sample, then by scale, and the ZIP of all."""

    images: list[tuple[Path, str]]
    archive: Path


def draw_faces(system: FaceSystem, person: Person, request: Request, folder: Path, *, marked: bool) -> Faces:
    """Draws faces and writes them to a new folder. Raises `UserError`."""
    images = system.sample(person, request.scales, request.samples, request.seed, request.settings)
    images = mark(images) if marked else images
    folder.mkdir()
    written = []
    for sample in range(request.samples):
        for scale, faces in zip(request.scales, images, strict=True):
            name = f"face_scale{format_scale(scale).replace(':', '-')}_{sample:02d}.png"
            notes = system.notes(person, scale, request.seed, request.settings)
            grids.save_png(Image.fromarray(faces[sample]), folder / name, {**notes, "sample": sample})
            caption = f"scale {format_scale(scale)}" + (f", sample {sample + 1}" if request.samples > 1 else "")
            written.append((folder / name, caption))
    return Faces(written, _archive([path for path, _ in written], folder / "faces.zip"))


def draw_matrix(system: FaceSystem, person: Person, path: Path) -> str:
    """Draws the feature matrix of a person as PNG; returns sentences about what is known, masked and not used."""
    matrix, mask = system.matrix(person)
    blocks = system.trained.system.layout.to_json()
    feature_matrix(matrix, mask, blocks, "what the system was given", path)
    given = {block["name"]: bool(mask[block["start"] : block["start"] + block["rows"]].any()) for block in blocks}
    return describe_inputs({"thumbnail": person.has_thumbnail, **given}, ("thumbnail", *system.inputs))


def describe_inputs(given: Mapping[str, bool], used: Sequence[str]) -> str:
    """Sentences that list the inputs that are known, masked, and not used by the system."""
    groups: dict[str, list[str]] = {"Known": [], "Masked": [], "Not used by this system": []}
    for name, known in given.items():
        groups["Not used by this system" if name not in used else "Known" if known else "Masked"].append(name)
    return " ".join(f"{title}: {', '.join(names)}." for title, names in groups.items() if names)


def _archive(paths: Sequence[Path], path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:  # PNGs are compressed already
        for each in paths:
            archive.write(each, each.name)
    return path
