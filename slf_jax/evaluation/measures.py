"""Identity, distribution and diversity of generated faces, and agreement of attributes with the real faces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from slf_jax.evaluation import distribution, metrics
from slf_jax.evaluation.features import ATTRIBUTES, FaceFeatures
from slf_jax.evaluation.identity import identity, same_person


def measure(
    images: np.ndarray, features: FaceFeatures, speakers: Sequence[str], real: FaceFeatures,
    gallery: tuple[Sequence[str], np.ndarray], metric: str,
) -> dict[str, Any]:  # fmt: skip
    """All of these measures, for results.json.

    Args:
      images: uint8 [P, samples, H, W, 3], of these speakers [P]; `features`: of the P x samples images.
      real: features of the real face of each person's own clip [P].
      gallery: speakers [g] and embeddings [g, D] of real faces, with which the embeddings are compared.
    """
    names, vectors = gallery
    count, samples = images.shape[:2]
    own, found = features.vectors.reshape(count, samples, -1), features.found.reshape(count, samples)
    queries = np.repeat(np.asarray(speakers), samples)
    return {
        "identity": identity(features.vectors, queries, vectors, names, metric=metric, found=features.found),
        # One sample of each person: several would be more alike than independent faces.
        "distribution": distribution.compare(
            own[:, 0][found[:, 0]], vectors, same_person(np.asarray(speakers)[found[:, 0]], names)
        ),
        "diversity": distribution.diversity(own, found, metric),
        "pixel_deviation": distribution.pixel_deviation(images),
        "clipped": metrics.mean_with_interval(
            metrics.clipped(images.reshape(-1, *images.shape[2:])).reshape(count, samples).mean(1)
        ),
        "agreement": {name: _agreement(features, real, name, samples) for name in ATTRIBUTES},
    }


def _agreement(features: FaceFeatures, real: FaceFeatures, name: str, samples: int) -> dict[str, Any] | None:
    """Share of faces from which the same class is read as from the real face; needs no labels of the people."""
    if name not in features.labels:
        return None
    truth = real.labels[name]
    same = features.labels[name].reshape(-1, samples) == truth[:, None]
    return metrics.rate(same[truth >= 0].mean(1), samples)
