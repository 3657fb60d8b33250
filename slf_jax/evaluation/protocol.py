"""Who is sampled, whom the gallery holds, how a set of faces is scored, and what the scores come to."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from slf_common.errors import UserError
from slf_jax.evaluation import metrics
from slf_jax.evaluation.embedders import ATTRIBUTES, FaceEmbedder, FaceFeatures
from slf_jax.evaluation.gallery import Gallery, ranks
from tfrecords.reader import Clips, stack

MAX_RANK = 100  # ranks are known up to here
MIN_GROUP = 5  # people, below which a group's recall is not compared


class TooFew(UserError):
    """Too few speakers to look for one among them."""


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
    """One probe of each of P speakers, and the real faces of G speakers that they are looked for among.

    Attributes:
      ids, speakers, probe: of the probes: clips, who they are, their records as a batch.
      gallery, faces: the speakers of the gallery and their faces, uint8 [G, 128, 128, 3].
      known, another: [P], whether the gallery has a face of the person, and whether it is another clip's.
      second: uint8 [P, 128, 128, 3], a real face from another clip than the gallery's, where there is one.
    """

    ids: list[str]
    speakers: list[str]
    probe: dict[str, np.ndarray]
    gallery: list[str]
    faces: np.ndarray
    known: np.ndarray
    another: np.ndarray
    second: np.ndarray
    labels: Mapping[str, tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.speakers)


def choose(clips: Clips, count: int = 0, *, same_clip: bool = False, gallery: Clips | None = None) -> EvaluationSet:
    """The first clip of each of the first `count` speakers (0: of all) as probe; their second ones as gallery.

    `same_clip`: the gallery holds the probe's own face, as in the paper, which is easier with a thumbnail. `gallery`:
    all speakers of this split are the gallery; people without a face in it are misses. Raises `UserError` if nobody
    is in the gallery, `TooFew` if it has fewer than 2 speakers.
    """
    mine = _first_two(clips, count)
    theirs = mine if gallery is None else _first_two(gallery)
    if not mine.keys() & theirs.keys():
        raise UserError(
            f"{gallery.directory}: the gallery holds nobody of {clips.directory}; it needs faces of the same speakers"
        )
    if len(theirs) < 2:
        raise TooFew(f"{clips.directory}: a gallery of {len(theirs)}: recall needs at least 2 speakers")
    ids = {speaker: both[0]["clip_id"] for speaker, both in mine.items()}
    real = {name: _pick(both, ids.get(name), same_clip) for name, both in theirs.items()}
    held = {speaker: real[speaker]["clip_id"] if speaker in real else None for speaker in mine}
    second = [_pick(both, held[speaker], False)["face"] for speaker, both in mine.items()]
    return EvaluationSet(
        list(ids.values()), list(mine), stack([both[0] for both in mine.values()]), list(real),
        np.stack([clip["face"] for clip in real.values()]), np.array([i is not None for i in held.values()]),
        np.array([held[speaker] not in (None, i) for speaker, i in ids.items()]), np.stack(second), clips.schema.labels,
    )  # fmt: skip


def _pick(clips: list[dict], clip_id: str | None, same: bool) -> dict:
    """The first clip that has this id, or that has it not; where there is none the first."""
    return next((clip for clip in clips if (clip["clip_id"] == clip_id) == same), clips[0])


def _first_two(clips: Clips, count: int = 0) -> dict[str, list[dict]]:
    """Up to two clips of each of the first `count` speakers, 0: of all."""
    found: dict[str, list[int]] = {}
    for i, (_, speaker) in enumerate(clips.names()):
        if count and len(found) == count and speaker not in found:
            continue
        mine = found.setdefault(speaker, [])
        if len(mine) < 2:
            mine.append(i)
    return {speaker: [clips[i] for i in mine] for speaker, mine in found.items()}


@dataclasses.dataclass(frozen=True)
class Scores:
    """What was measured on the faces of P people, a few samples of each: arrays [P, samples].

    rank: of the person in the gallery, 0 where not among the first `MAX_RANK` or where no face was found. age: years as
    guessed from the face, NaN where no face was found. labels: guesses, -1 where no face was found. What the embedder
    cannot guess is not there.
    """

    rank: np.ndarray
    found: np.ndarray
    age: np.ndarray | None
    labels: dict[str, np.ndarray]
    psnr: np.ndarray
    ssim: np.ndarray
    nearest: list[list[str]]  # speakers of the nearest gallery faces of each person's first sample


class FaceScorer:
    """Scores faces of the same people against one gallery."""

    def __init__(self, people: EvaluationSet, embedder: FaceEmbedder, folder: Path) -> None:
        self.people, self.embedder = people, embedder
        self.gallery = Gallery(folder, embedder.metric)
        self._open_gallery()

    def _open_gallery(self) -> None:
        people = self.people
        faces = hashlib.sha256(people.faces.tobytes()).hexdigest()
        built_from = {"embedder": self.embedder.fingerprint, "faces": faces, "speakers": people.gallery}
        if self.gallery.open(self.embedder.name, built_from):
            return
        real = self.embedder(people.faces, progress="gallery")
        if not real.found.any():
            raise UserError(
                f"{self.embedder.name}: no face was found in any of the {len(people.gallery)} real faces; "
                "try another --detector, as in --detector skip"
            )
        speakers = [name for name, seen in zip(people.gallery, real.found, strict=True) if seen]
        self.gallery.build(self.embedder.name, built_from, speakers, real.vectors[real.found])

    def score(self, images: np.ndarray, progress: str = "") -> Scores:
        """Scores of images uint8 [P, samples, 128, 128, 3]."""
        count, samples = images.shape[:2]
        seen = self.embedder(images.reshape(-1, *images.shape[2:]), progress=progress)
        neighbours = self._search(seen)
        rank = ranks(neighbours, np.repeat(self.people.speakers, samples))
        real = self.people.probe["face"]
        fidelity = [
            np.stack([measure(images[:, i], real) for i in range(samples)], 1)
            for measure in (metrics.psnr, metrics.ssim)
        ]

        def table(values: np.ndarray) -> np.ndarray:
            return values.reshape(count, samples)

        age, labels = seen.age, {name: table(x) for name, x in seen.labels.items()}
        return Scores(
            table(rank), table(seen.found), None if age is None else table(age), labels, *fidelity,
            [names[:3] for names in neighbours[::samples]],
        )  # fmt: skip

    def _search(self, seen: FaceFeatures) -> list[list[str]]:
        """The gallery's speakers by distance for each face, none where no face was found."""
        neighbours = iter(self.gallery.search(seen.vectors[seen.found], min(MAX_RANK, len(self.gallery))))
        return [next(neighbours) if found else [] for found in seen.found]


def hits(scores: Scores, k: int) -> np.ndarray:
    """Each person's share [P] of samples that are recalled at k."""
    return ((scores.rank >= 1) & (scores.rank <= k)).mean(1)


def summary(scores: Scores, people: EvaluationSet) -> dict:
    """All figures of one system: rates with N and 95 % interval, means, sd over samples where there are several."""
    out: dict = {f"r@{k}": _rate(hits(scores, k), scores.rank.shape[1]) for k in metrics.KS}
    samples = scores.rank.shape[1]
    for name in ATTRIBUTES:
        truth, out[name] = people.probe[name], None
        known = truth >= 0
        if name in scores.labels:
            out[name] = _rate((scores.labels[name] == truth[:, None])[known].mean(1), samples)
    out["age_group"], out["age_rmse"] = _ages(scores, people)
    for name, values in (("psnr", scores.psnr), ("ssim", scores.ssim)):
        out[name] = None  # the real face itself is infinitely like itself
        if np.isfinite(values).all():
            low, high = metrics.mean_interval(values.mean(1))
            out[name] = {"mean": float(values.mean()), "low": low, "high": high}
    out["faces_found"] = float(scores.found.mean())
    if samples > 1:
        each = {f"r@{k}": [metrics.recall(scores.rank[:, i], k) for i in range(samples)] for k in metrics.KS}
        each |= {"psnr": scores.psnr.mean(0), "ssim": scores.ssim.mean(0)}
        out["sd_over_samples"] = {name: float(np.std(values, ddof=1)) for name, values in each.items()}
    return out


def _ages(scores: Scores, people: EvaluationSet) -> tuple[dict | None, float | None]:
    """Recall of the age group, and the root mean square error in years."""
    if scores.age is None:
        return None, None
    known = np.isfinite(people.probe["age"])
    age, guess = people.probe["age"][known, None], scores.age[known]
    group = metrics.age_group(np.nan_to_num(guess, nan=-1000)) == metrics.age_group(age)
    square = (guess - age) ** 2
    rmse = float(np.sqrt(np.nanmean(square))) if np.isfinite(square).any() else None
    return _rate(group.mean(1), scores.rank.shape[1]), rmse


def _rate(shares: np.ndarray, samples: int) -> dict | None:
    """A rate over people, from each one's share of hits, with its interval."""
    if not len(shares):
        return None
    low, high = metrics.rate_interval(shares, samples)
    return {"rate": float(shares.mean()), "low": low, "high": high, "n": len(shares)}


def recalls(summed: Mapping) -> dict[int, float]:
    """R@k by k of a summary."""
    return {k: summed[f"r@{k}"]["rate"] for k in metrics.KS}


def compare(a: Scores, b: Scores) -> dict:
    """By how much system a recalls more than b of the same people, at each k: `metrics.paired`."""
    return {f"r@{k}": metrics.paired(hits(a, k), hits(b, k)) for k in metrics.KS}


def by_group(scores: Scores, people: EvaluationSet) -> dict:
    """R@k of each gender, age group and ethnicity with N, and the largest gap in R@10 within one kind."""
    kinds = {name: {text: people.probe[name] == i for i, text in enumerate(people.labels[name])} for name in ATTRIBUTES}
    decade = np.where(np.isfinite(people.probe["age"]), people.probe["age"], -1000) // metrics.DECADE
    kinds["age_group"] = {f"{int(d) * 10}-{int(d) * 10 + 9}": decade == d for d in np.unique(decade) if d >= 0}
    samples = scores.rank.shape[1]
    tables = {
        kind: {
            text: {f"r@{k}": _rate(hits(scores, k)[member], samples) for k in metrics.KS}
            for text, member in groups.items()
            if member.any()
        }
        for kind, groups in kinds.items()
    }
    return {**tables, "largest_gap": _largest_gap(tables)}


def _largest_gap(tables: Mapping[str, Mapping[str, Mapping]]) -> dict | None:
    gaps = []
    for kind, groups in tables.items():
        rates = {text: group["r@10"]["rate"] for text, group in groups.items() if group["r@10"]["n"] >= MIN_GROUP}
        if len(rates) > 1:
            most, least = max(rates, key=rates.get), min(rates, key=rates.get)
            gaps.append({"kind": kind, "most": most, "least": least, "gap": rates[most] - rates[least]})
    return max(gaps, key=lambda each: each["gap"], default=None)


def confusions(scores: Scores, people: EvaluationSet) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """For each attribute that is known of anybody: class names, and counts of guesses from first samples."""
    tables = {}
    for name in ATTRIBUTES:
        known = people.probe[name] >= 0
        if known.any() and name in scores.labels:
            names = people.labels[name]
            tables[name] = (
                names,
                metrics.confusion(people.probe[name][known], scores.labels[name][known, 0], len(names)),
            )
    known = np.isfinite(people.probe["age"])
    if known.any() and scores.age is not None:
        truth = metrics.age_group(people.probe["age"][known])
        guess = metrics.age_group(np.nan_to_num(scores.age[known, 0], nan=-10))
        first, last = min(truth.min(), guess[guess >= 0].min(initial=99)), max(truth.max(), guess.max())
        guess = np.where(guess < 0, -1, guess - first)
        names = tuple(f"{d}0-{d}9" for d in range(first, last + 1))
        tables["age group"] = names, metrics.confusion(truth - first, guess, len(names))
    return tables
