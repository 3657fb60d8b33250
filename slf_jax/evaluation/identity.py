"""Measures of identity between face embeddings: similarity to the person's own face, ranks and verification.

All functions take plain arrays: embeddings of queries and of a gallery, and the person's id of each. A query may be the
embedding of a generated face, or one that was predicted without drawing a face.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from slf_common.errors import UserError
from slf_jax.evaluation.metrics import mean_with_interval, rate_interval


def cosines(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Cosine similarities [n, g] of queries [n, D] and gallery [g, D]."""
    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (queries, gallery))
    return a @ b.T


def distances(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Euclidean distances [n, g] of queries [n, D] and gallery [g, D]."""
    squares = (queries**2).sum(1)[:, None] + (gallery**2).sum(1) - 2 * queries @ gallery.T
    return np.sqrt(np.maximum(squares, 0))


def similarities(queries: np.ndarray, gallery: np.ndarray, metric: str) -> np.ndarray:
    """Similarities [n, g], larger for nearer: cosine, or the negative distance for `metric` "l2"."""
    return cosines(queries, gallery) if metric == "cosine" else -distances(queries, gallery)


def same_person(query_ids: ArrayLike, gallery_ids: ArrayLike) -> np.ndarray:
    """Whether query and gallery face are of the same person, bool [n, g]."""
    return np.asarray(query_ids)[:, None] == np.asarray(gallery_ids)


def own_ranks(similarity: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Rank [n], from 1, of the person's own face by similarity [n, g]; 0 if the gallery has none (own: bool [n, g]).

    Faces of others that are equally similar are ranked before it.
    """
    best = np.where(own, similarity, -np.inf).max(1, keepdims=True)
    return np.where(own.any(1), 1 + ((similarity >= best) & ~own).sum(1), 0)


def verification(similarity: np.ndarray, own: np.ndarray, people: ArrayLike) -> dict[str, Any] | None:
    """Area under the ROC curve and equal error rate of telling genuine pairs (own: bool [n, g]) from all others.

    The EER is where false acceptance and false rejection are equal, linearly between points of the ROC curve. The 95 %
    intervals are Wilson's for an effective number of people: the queries of one person (people [n]) are one cluster, in
    the variance of Obuchowski (1997) for the AUC, and in that of the mean of both error rates at the EER's threshold.
    The gallery is taken as given. None without genuine or without other pairs. A query without a face has a similarity
    of -inf to all: it is rejected at any threshold.
    """
    finite = similarity[np.isfinite(similarity)]
    scores = np.where(np.isfinite(similarity), similarity, finite.min(initial=0.0) - 1).astype(np.float64)
    genuine, impostor = scores[own], scores[~own]
    if not len(genuine) or not len(impostor):
        return None
    numbers = np.unique(np.asarray(people), return_inverse=True)[1]
    clusters, count = np.broadcast_to(numbers[:, None], own.shape), int(numbers.max()) + 1
    sides = clusters[own], clusters[~own]
    beaten, lost = _placements(genuine, impostor), 1 - _placements(impostor, genuine)
    auc = float(beaten.mean())
    eer, threshold = _equal_error(genuine, impostor)
    errors = (genuine < threshold).astype(np.float64), (impostor >= threshold).astype(np.float64)
    auc_low, auc_high = rate_interval(auc + _influence(beaten, sides[0], count) + _influence(lost, sides[1], count))
    eer_low, eer_high = rate_interval(
        eer + (_influence(errors[0], sides[0], count) + _influence(errors[1], sides[1], count)) / 2
    )
    return {
        "auc": {"rate": auc, "low": auc_low, "high": auc_high},
        "eer": {"rate": eer, "low": eer_low, "high": eer_high},
        "genuine": len(genuine), "impostor": len(impostor),
    }  # fmt: skip


def _placements(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Share of `others` below each of the values, equal ones counting half."""
    ordered = np.sort(others)
    below, up_to = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
    return (below + up_to) / (2 * len(ordered))


def _influence(values: np.ndarray, clusters: np.ndarray, count: int) -> np.ndarray:
    """What each of `count` clusters adds to the mean of values, times `count`: its mean is zero."""
    return np.bincount(clusters, values - values.mean(), minlength=count) * count / len(values)


def _equal_error(genuine: np.ndarray, impostor: np.ndarray) -> tuple[float, float]:
    """The equal error rate and the threshold next to it."""
    try:
        from sklearn.metrics import roc_curve
    except ImportError:
        raise UserError('verification needs scikit-learn: pip install -e ".[evaluate]"') from None
    labels = np.repeat((True, False), (len(genuine), len(impostor)))
    accepted, correct, thresholds = roc_curve(labels, np.concatenate([genuine, impostor]))
    gap = 1 - correct - accepted  # falls from 1 to -1
    after = int((gap <= 0).argmax())
    part = gap[after - 1] / (gap[after - 1] - gap[after])
    return float(accepted[after - 1] + part * (accepted[after] - accepted[after - 1])), float(thresholds[after])


def identity(
    queries: np.ndarray, query_ids: ArrayLike, gallery: np.ndarray, gallery_ids: ArrayLike, *, metric: str,
    found: np.ndarray | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Identity between queries [n, D] and the faces of the gallery [g, D], of the people with these ids.

    Returns, with 95 % intervals over people: the mean cosine and Euclidean distance (`l2`) to the person's own face and
    to those of others, the identity angle in degrees (arc cosine of the cosine to the own face; "Deg." of GFPGAN, Wang
    et al. 2021), and the `verification` by `metric`. Queries without a face (`found` [n] False) have no part in the
    means and are rejected in the verification.
    """
    found = np.ones(len(queries), bool) if found is None else found
    own = same_person(query_ids, gallery_ids)
    cosine, l2 = cosines(queries, gallery), distances(queries, gallery)
    similarity = np.where(found[:, None], cosine if metric == "cosine" else -l2, -np.inf)
    clusters = np.unique(np.asarray(query_ids), return_inverse=True)[1]

    def over_people(values: np.ndarray, use: np.ndarray) -> dict[str, Any] | None:
        use = use & found[:, None]
        counts, sums = (np.bincount(clusters, each.sum(1)) for each in (use.astype(float), np.where(use, values, 0.0)))
        return mean_with_interval(sums[counts > 0] / counts[counts > 0])

    angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    return {
        "cosine_own": over_people(cosine, own), "cosine_others": over_people(cosine, ~own),
        "l2_own": over_people(l2, own), "l2_others": over_people(l2, ~own),
        "angle": over_people(angle, own), "verification": verification(similarity, own, query_ids),
    }  # fmt: skip
