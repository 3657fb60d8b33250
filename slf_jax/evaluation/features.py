"""What an embedder of faces returns, and estimates of attributes from embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from slf_common.errors import UserError
from tfrecords.reader import Clips, stack

ATTRIBUTES = ("gender", "ethnicity")


class NoNetwork(UserError):
    """A network's package or weights are not available. (Weights that fail to load raise `UserError`.)"""


class FaceFeatures(NamedTuple):
    """Features of n pictures: embeddings [n, D], whether a face was found [n], and estimates [n] of age in years
    (NaN: no face) and of labels (-1: no face). Attributes without a model have no estimates: None, or no entry.
    """

    vectors: np.ndarray
    found: np.ndarray
    age: np.ndarray | None
    labels: dict[str, np.ndarray]


class FaceEmbedder(Protocol):
    """An embedder of faces. `name` and `metric` go into the report; `fingerprint` identifies its weights."""

    name: str
    metric: str
    fingerprint: str

    def __call__(self, faces: np.ndarray, progress: str = "") -> FaceFeatures:
        """The features of faces uint8 [n, 128, 128, 3]; `progress`: label of the progress bar, empty for none."""


class LinearEstimates:
    """Age by ridge regression and labels by logistic regression from embeddings, fitted on records that have them."""

    def __init__(self, vectors: np.ndarray, clips: Mapping[str, np.ndarray]) -> None:
        from sklearn.linear_model import LogisticRegression, Ridge

        known = np.isfinite(clips["age"])
        self._age = Ridge(1.0).fit(vectors[known], clips["age"][known]) if known.sum() > 1 else None
        self._labels = {}
        for name in ATTRIBUTES:
            known = clips[name] >= 0
            if len(set(clips[name][known].tolist())) > 1:
                self._labels[name] = LogisticRegression(max_iter=1000).fit(vectors[known], clips[name][known])

    def __call__(self, vectors: np.ndarray, found: np.ndarray) -> tuple[np.ndarray | None, dict[str, np.ndarray]]:
        """Age and labels, as in `FaceFeatures`, from vectors [n, D] of faces that were found [n]."""
        age = np.where(found, np.clip(self._age.predict(vectors), 0, 120), np.nan) if self._age else None
        return age, {name: np.where(found, model.predict(vectors), -1) for name, model in self._labels.items()}


def spread(clips: Clips, count: int) -> dict[str, np.ndarray]:
    """Up to `count` records, evenly spaced, as a batch."""
    return stack([clips[int(i)] for i in np.linspace(0, len(clips) - 1, min(count, len(clips))).astype(int)])


def padded_copies(face: np.ndarray, factors: Sequence[float]) -> Iterator[np.ndarray]:
    """Scaled, padded and mirrored copies of a picture uint8 [H, W, 3], for faces that fill it."""
    for factor in factors:
        height, width = (max(1, round(side * factor)) for side in face.shape[:2])
        small = np.asarray(Image.fromarray(face).resize((width, height), Image.Resampling.BOX))
        padded = np.pad(small, ((height // 2,) * 2, (width // 2,) * 2, (0, 0)), "edge")
        yield from (padded, np.ascontiguousarray(padded[:, ::-1]))
