"""Makes scorers of faces: chooses the embedder, the gallery's folder and the validation people."""

from __future__ import annotations

import sys
from pathlib import Path

from slf_common.errors import UserError
from slf_common.files import check_writable
from slf_jax.evaluation import embedders, protocol
from slf_jax.evaluation.embedders import FaceEmbedder
from slf_jax.evaluation.protocol import FaceScorer
from slf_jax.inference.arguments import default_out
from tfrecords.reader import Absent, Clips


def choose_embedder(name: str, metric: str, detector: str, train: Clips | None) -> FaceEmbedder:
    """The embedder with this name; "auto" is the paper's if its weights are available, else eigenfaces."""
    if name != "auto":
        return embedders.make_embedder(name, metric, detector, train)
    embedders.check_detector(detector)
    try:
        return embedders.make_embedder("vgg-face", metric, detector, train)
    except embedders.NoNetwork as error:
        print(f"note: faces are compared by eigenfaces, since no face network is available ({error})", file=sys.stderr)
        return embedders.make_embedder("eigenfaces", metric, detector, train)


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
