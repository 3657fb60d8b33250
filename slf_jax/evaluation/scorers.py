"""Makes scorers of faces: chooses the gallery's folder and the validation people."""

from __future__ import annotations

import sys
from pathlib import Path

from slf_common.errors import UserError
from slf_common.files import check_writable
from slf_jax.evaluation import protocol
from slf_jax.evaluation.features import FaceEmbedder
from slf_jax.evaluation.protocol import FaceScorer
from slf_jax.inference.arguments import default_out
from tfrecords.reader import Absent, Clips


def validation_scorer(
    directory: str | Path, same_clip: bool, embedder: FaceEmbedder, gallery: Path
) -> FaceScorer | None:
    """The scorer of the validation people, on whom a scale is chosen; prints a note and returns None without any."""
    try:
        people = protocol.choose(Clips(directory, "validation"), same_clip=same_clip)
    except (Absent, protocol.TooFew) as error:
        print(f"note: no scale can be chosen on validation people ({error}); using the first", file=sys.stderr)
        return None
    return FaceScorer(people, embedder, gallery / "validation")


def gallery_folder(source: str | Path, out: Path) -> Path:
    """The gallery's folder: in the run directory, so that it is built once; in `out` if that is read-only or no run."""
    folder = default_out(source, "gallery")
    try:
        check_writable(folder)
    except UserError:
        return out / "gallery"
    return folder if folder.parent == source else out / "gallery"
