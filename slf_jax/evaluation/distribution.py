"""Distance of a set of generated faces from real ones in the space of a face embedder, and diversity over samples."""

from __future__ import annotations

from typing import Any

import numpy as np

from slf_jax.evaluation.metrics import mean_with_interval


def kid(generated: np.ndarray, real: np.ndarray, same: np.ndarray) -> float:
    """Kernel inception distance (Binkowski et al. 2018) between features [n, D] and [m, D], each of at least two.

    The unbiased estimate of the squared maximum mean discrepancy with the kernel (x.y / D + 1)^3, over whole sets. For
    two samples of one distribution, of any size, it is 0 in expectation and may be negative. Pairs of a generated and a
    real face of the `same` person (bool [n, m]) are left out, as in Gretton et al. (2012, Lemma 6): both sets may show
    the same people, whose faces are more alike than independent ones.
    """
    n, m, size = len(generated), len(real), generated.shape[1]
    within = ((x @ x.T / size + 1) ** 3 for x in (generated, real))
    own = sum((k.sum() - np.trace(k)) / (count * (count - 1)) for k, count in zip(within, (n, m), strict=True))
    return float(own - 2 * ((generated @ real.T / size + 1) ** 3)[~same].mean())


def frechet(generated: np.ndarray, real: np.ndarray) -> float:
    """Frechet distance (Heusel et al. 2017) between Gaussians fitted to features [n, D] and [m, D].

    It is biased upwards, more so the fewer faces there are: only compare figures of equally many.
    """
    means = generated.mean(0) - real.mean(0)
    # The covariances are a'a and b'b; the trace of the root of their product is the sum of singular values of ab'.
    a, b = ((x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (generated, real))
    a, b = (np.asarray(np.linalg.qr(x, mode="r")) for x in (a, b))  # at most D rows
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(means @ means + (a**2).sum() + (b**2).sum() - 2 * cross)


def compare(generated: np.ndarray, real: np.ndarray, same: np.ndarray) -> dict[str, Any] | None:
    """`kid` and `frechet` of features [n, D] against [m, D], both divided by the root mean square of the real ones.

    Networks differ in the length of their embeddings; divided by it, the kernel sees all of them alike. None for fewer
    than two faces, or if all pairs are of the same person (`same`, as for `kid`).
    """
    if min(len(generated), len(real)) < 2 or same.all():
        return None
    real = np.asarray(real, np.float64)
    scale = np.sqrt((real**2).mean())
    generated, real = np.asarray(generated, np.float64) / scale, real / scale
    return {
        "kid": kid(generated, real, same), "frechet": frechet(generated, real),
        "generated": len(generated), "real": len(real),
    }  # fmt: skip


def diversity(vectors: np.ndarray, found: np.ndarray, metric: str) -> dict[str, Any] | None:
    """Mean distance between two samples of a person, with a 95 % interval over people; None without two samples.

    From embeddings [P, samples, D] and whether a face was found [P, samples]; one minus the cosine, or Euclidean for
    `metric` "l2". Samples without a face are left out.
    """
    first, second = np.triu_indices(vectors.shape[1], 1)
    both = found[:, first] & found[:, second]
    if not both.any():
        return None
    if metric == "cosine":
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
        distance = 1 - (vectors[:, first] * vectors[:, second]).sum(-1)
    else:
        distance = np.linalg.norm(vectors[:, first] - vectors[:, second], axis=-1)
    counts = both.sum(1)
    return mean_with_interval(np.where(both, distance, 0).sum(1)[counts > 0] / counts[counts > 0])


def pixel_deviation(images: np.ndarray) -> dict[str, Any] | None:
    """Standard deviation (of 255) of each value over samples of a person, averaged, of uint8 [P, samples, H, W, 3].

    With a 95 % interval over people; None without two samples.
    """
    if images.shape[1] < 2:
        return None
    return mean_with_interval(np.array([x.std(0, ddof=1, dtype=np.float32).mean() for x in images]))
