"""Metrics of faces against the real ones (fidelity, recall, significance), their intervals and tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from slf_common.errors import UserError

KS = (1, 3, 5, 10)  # the k of each R@k in the paper
REPORTED_KS = (1, 2, 3, 5, 10, 50)  # with those of SF2F (Bai et al. 2022); those below the gallery's size are reported
WEIGHTS = {1: 10, 3: 5, 5: 3, 10: 1}  # of R@k in the significance S (Eq. 4)
# Upper limits of S and the paper's terms for them.
BANDS = ((0, "negligible"), (20, "minor"), (40, "moderate"), (60, "considerable"), (80, "significant"))
DECADE = 10  # years in an age group


def psnr(images: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB [B], of uint8 images [B, H, W, 3]."""
    ratio = _skimage().peak_signal_noise_ratio
    with np.errstate(divide="ignore"):  # infinite for equal images
        return np.array([ratio(r, i) for i, r in zip(images, real, strict=True)])


def ssim(images: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Structural similarity [B], of uint8 images [B, H, W, 3]: scikit-image's default 7x7 window, over RGB."""
    similarity = _skimage().structural_similarity
    return np.array([similarity(r, i, channel_axis=-1) for i, r in zip(images, real, strict=True)])


def thumbnail_error(images: np.ndarray, real: np.ndarray, size: int = 8) -> np.ndarray:
    """Mean absolute difference [B] of the `size` x `size` area averages, in 1/255, of uint8 images [B, H, W, 3]."""

    def average(x: np.ndarray) -> np.ndarray:
        b, h, w, c = x.shape
        return x.reshape(b, size, h // size, size, w // size, c).astype(np.float64).mean((2, 4))

    return np.abs(average(images) - average(real)).mean((1, 2, 3))


def fidelity(images: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """Means over people and samples of PSNR (dB), SSIM and thumbnail error (of 255), of images [B, samples, H, W, 3].

    With several samples also the standard deviation over samples of the mean over people.
    """
    found = {}
    for name, measure in {"psnr": psnr, "ssim": ssim, "thumbnail_error": thumbnail_error}.items():
        each = [float(measure(images[:, i], real).mean()) for i in range(images.shape[1])]
        found[name] = float(np.mean(each))
        if len(each) > 1:
            found[f"{name}_sd"] = float(np.std(each, ddof=1))
    return found


def clipped(images: np.ndarray) -> np.ndarray:
    """Share [B] of saturated values, 0 or 255, in uint8 images [B, H, W, 3]: strong guidance drives them up."""
    return ((images == 0) | (images == 255)).mean((1, 2, 3))


def recall(ranks: np.ndarray, k: int) -> float:
    """R@k (Eq. 2): the share of ranks [n] from 1 to k. Rank 0 means not found, a miss for any reason."""
    return float(((ranks >= 1) & (ranks <= k)).mean())


def reported_ks(gallery: int) -> tuple[int, ...]:
    """The k of each R@k to report of a gallery: the paper's, and those others that are below its size."""
    return tuple(k for k in REPORTED_KS if k in KS or k < gallery)


def random_recall(k: int, gallery: int) -> float:
    """Expected R@k of a random order of a gallery that contains one face of the person."""
    return min(k, gallery) / gallery


def increase(full: Mapping[int, float], without: Mapping[int, float], k: int) -> float:
    """Increase of R@k by an input, in percent (Eq. 3)."""
    return 100 * (full[k] - without[k]) / without[k]


def significance(full: Mapping[int, float], without: Mapping[int, float]) -> float:
    """S of an input (Eq. 3-4): the weighted increase of recall in percent; NaN if a recall without it is 0."""
    if any(without[k] == 0 for k in WEIGHTS):
        return float("nan")
    return sum(weight * increase(full, without, k) for k, weight in WEIGHTS.items()) / sum(WEIGHTS.values())


def band(s: float) -> str:
    """The paper's term for a significance S; "harmful" below zero, for which the paper has none."""
    if np.isnan(s):
        return "undefined"
    if s < 0:
        return "harmful"
    return next((name for limit, name in BANDS if s <= limit), "profound")


def weighted_recall(recalls: Mapping[int, float]) -> float:
    """Mean of R@1 to R@10 by the weights of Eq. 4, by which a guidance scale is chosen."""
    return sum(WEIGHTS[k] * recalls[k] for k in WEIGHTS) / sum(WEIGHTS.values())


def age_group(years: np.ndarray) -> np.ndarray:
    """The decade of each age: 0 for [0, 10), 1 for [10, 20), ..."""
    return np.floor_divide(years, DECADE).astype(int)


def wilson(hits: float, count: float, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a rate of hits among `count` independent trials (Wilson 1927); `count` may be effective."""
    if not count:
        return float("nan"), float("nan")
    rate, square = hits / count, z**2 / count
    middle = (rate + square / 2) / (1 + square)
    half = z / (1 + square) * np.sqrt(rate * (1 - rate) / count + square / (4 * count))
    return float(max(0.0, middle - half)), float(min(1.0, middle + half))


def rate_interval(shares: np.ndarray, samples: float = np.inf) -> tuple[float, float]:
    """95 % interval of a rate, from each person's share [n] of `samples` that are hits.

    Wilson's interval for the effective sample size with people as clusters (Korn & Graubard 1998): the number of
    independent trials that would have the same variance, at most one for each sample. The variance is estimated with
    two people added, one of hits only and one of misses only (as in `difference_interval`), so that it is not zero if
    all shares are equal. With one sample this is exactly Wilson's interval, and at 0 and 100 % it is the same for any
    number of samples: 0 of 118 people gives [0, 3.2 %].
    """
    count = len(shares)
    if not count:
        return float("nan"), float("nan")
    extended = np.append(shares, (0.0, 1.0))
    centre = extended.mean()
    design = float(extended.var() / (centre * (1 - centre)))  # relative to independent trials, one for each person
    effective = count / max(design, 1 / samples)
    return wilson(float(np.clip(shares.mean(), 0, 1)) * effective, effective)


def rate(shares: np.ndarray, samples: float = np.inf) -> dict[str, Any] | None:
    """A rate over people, its `rate_interval` and their number, from each person's share of hits [n]; None of none."""
    if not len(shares):
        return None
    low, high = rate_interval(shares, samples)
    return {"rate": float(shares.mean()), "low": low, "high": high, "n": len(shares)}


def mean_interval(values: np.ndarray) -> tuple[float, float] | tuple[None, None]:
    """95 % interval (Student's t) of the mean of values [n], one for each person.

    None if the values do not show how much people vary: a single one, all equal, or not all finite.
    """
    from scipy.stats import ttest_1samp

    if len(values) < 2 or not np.isfinite(values).all() or np.ptp(values) == 0:
        return None, None
    low, high = ttest_1samp(values, 0.0).confidence_interval(0.95)
    return float(low), float(high)


def mean_with_interval(values: np.ndarray) -> dict[str, Any] | None:
    """Mean and 95 % interval of the finite ones of values [n], one for each person, and their number; None of none."""
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = mean_interval(values)
    return {"mean": float(values.mean()), "low": low, "high": high, "n": len(values)}


def difference_interval(differences: np.ndarray, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a difference of paired rates, from each person's difference [n] in [-1, 1].

    Bonett & Price (2012): Wald's, with one person added for whom only the first system hits and one for whom only the
    second does, so that it has a width even if no results differ. With one sample it is exactly their interval.
    """
    if not len(differences):
        return float("nan"), float("nan")
    extended = np.append(differences, (1.0, -1.0))
    half = z * extended.std() / np.sqrt(len(extended))
    return float(max(-1.0, extended.mean() - half)), float(min(1.0, extended.mean() + half))


def mcnemar(a: np.ndarray, b: np.ndarray) -> float:
    """Exact two-sided p of equal recall, from the hits a and b [n] of two systems on the same people (McNemar 1947)."""
    from scipy.stats import binomtest

    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def paired(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    """Difference in recall between systems a and b, from each person's share of recalled samples [n] with either.

    The interval is `difference_interval`; p is McNemar's, None if shares of several samples are not all 0 or 1.
    """
    low, high = difference_interval(a - b)
    whole = np.isin([a, b], (0, 1)).all()
    return {
        "first": float(a.mean()), "second": float(b.mean()), "difference": float((a - b).mean()), "low": low,
        "high": high, "p_mcnemar": mcnemar(a > 0.5, b > 0.5) if whole else None,
    }  # fmt: skip


def paired_means(a: np.ndarray, b: np.ndarray) -> dict[str, Any] | None:
    """Mean difference between systems a and b in a measure of each person [n], its 95 % interval and two-sided p.

    By Student's paired t-test. None if a value is not finite, or if the differences do not vary.
    """
    from scipy.stats import ttest_rel

    differences = np.asarray(a, np.float64) - b
    low, high = mean_interval(differences)
    if low is None:
        return None
    return {"difference": float(differences.mean()), "low": low, "high": high, "p": float(ttest_rel(a, b).pvalue)}


def p_above_chance(hits: np.ndarray, chance: float) -> float:
    """Exact one-sided p of the hits [n], bool, if each had this chance (binomial test)."""
    from scipy.stats import binomtest

    return float(binomtest(int(hits.sum()), len(hits), chance, alternative="greater").pvalue)


def format_rate(rate: float) -> str:
    """A rate in percent as the paper prints it: rounded to tenths, then a zero (8 of 118: `6.80`)."""
    return f"{100 * rate:.1f}0"


def confusion(truth: ArrayLike, found: ArrayLike, classes: int) -> np.ndarray:
    """Counts [classes, classes + 1] of classes [n]: rows true, columns found; the last column for none found (-1)."""
    counts = np.zeros((classes, classes + 1), int)
    found = np.asarray(found)
    np.add.at(counts, (np.asarray(truth), np.where(found < 0, classes, found)), 1)
    return counts


def _skimage():
    try:
        import skimage.metrics
    except ImportError:
        raise UserError('PSNR and SSIM need scikit-image: pip install -e ".[evaluate]"') from None
    return skimage.metrics
