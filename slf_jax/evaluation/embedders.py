"""The embedders of faces by name, and the choice between them."""

from __future__ import annotations

import sys

import numpy as np

from slf_common.errors import UserError
from slf_jax.evaluation import deepface_networks
from slf_jax.evaluation.deepface_networks import DeepFaceEmbedder
from slf_jax.evaluation.dlib_network import DlibEmbedder
from slf_jax.evaluation.eigenfaces import Eigenfaces
from slf_jax.evaluation.features import FaceEmbedder, NoNetwork
from slf_jax.evaluation.identity import distances
from tfrecords.reader import Clips

# The distance by which each compares faces, if no other is given.
METRICS = {"dlib": "l2", "eigenfaces": "cosine", "vgg-face": "l2", "facenet512": "cosine", "arcface": "cosine"}
EMBEDDERS = tuple(METRICS)
CHECKED = 24  # faces of different people on which dlib is tried
SAME_PERSON = 0.6  # dlib takes two faces for one person at smaller distances


def make_embedder(name: str, metric: str, detector: str, train: Clips | None) -> FaceEmbedder:
    """The embedder with this name. Raises `UserError`, `NoNetwork` if its package or weights are missing.

    Args:
      metric: "l2" or "cosine"; empty: as in `METRICS`.
      detector: of dlib or DeepFace; empty: dlib's, or for DeepFace the paper's.
      train: clips on whose faces eigenfaces, and attributes read from dlib's embeddings, are fitted.
    """
    if name not in EMBEDDERS:
        raise UserError(f"--embedder {name}: must be one of: {', '.join(EMBEDDERS)}")
    metric = metric or METRICS[name]
    if name == "dlib":
        return DlibEmbedder(metric, detector or "dlib", train)
    if name != "eigenfaces":
        return DeepFaceEmbedder(name, metric, detector or deepface_networks.DETECTOR)
    if train is None:
        raise UserError("--embedder eigenfaces: needs a train split to fit on, this dataset has none; choose another")
    return Eigenfaces(train, metric)


def choose_embedder(name: str, metric: str, detector: str, train: Clips | None, faces: np.ndarray) -> FaceEmbedder:
    """The embedder with this name; "auto": dlib, else DeepFace's VGG-Face, else eigenfaces.

    dlib is passed over if it does not see people in faces [n, 128, 128, 3], each of another person, as in drawings.
    """
    if name != "auto":
        return make_embedder(name, metric, detector, train)
    if detector:
        deepface_networks.check_detector(detector)
    reasons = []
    for candidate in ("dlib", "vgg-face"):
        try:
            embedder = make_embedder(candidate, metric, detector, train)
        except NoNetwork as error:
            reasons.append(str(error))
            continue
        if not isinstance(embedder, DlibEmbedder) or not (reason := _unsuitable(embedder, faces)):
            return embedder
        reasons = [f"dlib {reason}"]
        break  # no other face network would do better
    print(f"note: faces are compared by eigenfaces, that is by their pixels: {'; '.join(reasons)}", file=sys.stderr)
    return make_embedder("eigenfaces", metric, detector, train)


def _unsuitable(embedder: DlibEmbedder, faces: np.ndarray) -> str:
    """Why dlib cannot compare these faces of different people; empty if it can."""
    sample = faces[np.linspace(0, len(faces) - 1, min(CHECKED, len(faces))).astype(int)]
    vectors, found = embedder.embed(sample)
    if 2 * found.sum() < len(sample):
        return f"finds a face in only {found.sum()} of {len(sample)} of these pictures"
    if found.sum() < 2:
        return ""
    others = distances(vectors[found], vectors[found])[np.triu_indices(found.sum(), 1)]
    if np.median(others) < SAME_PERSON:
        return f"takes most of these different people for the same (median distance {np.median(others):.2f})"
    return ""
