"""The evaluation protocol: probes and gallery, scoring a set of faces, and summaries of the scores."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from slf_common.errors import UserError
from slf_jax.evaluation import metrics
from slf_jax.evaluation.features import ATTRIBUTES, FaceEmbedder, FaceFeatures
from slf_jax.evaluation.gallery import Gallery, ranks
from slf_jax.evaluation.measures import measure
from tfrecords.reader import Clips, stack
from tfrecords.schema import FACE_EMBEDDING

MAX_RANK = 100  # nearest faces that a query returns: ranks beyond are not known
MAX_OTHERS = 2000  # faces of a larger gallery with which embeddings are compared, beside the people's own
GALLERY_FIELDS = ("clip_id", "face", FACE_EMBEDDING)
MIN_GROUP = 5  # minimum number of people in a group to be compared with others


class TooFew(UserError):
    """The gallery has too few speakers for recall to mean anything."""


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
    """One probe clip of each of P speakers, and a gallery of real faces of G speakers.

    Attributes:
      ids, speakers, probe: clip ids and speaker ids of the probes, and their records as a batch.
      gallery, faces: speaker ids and faces of the gallery, uint8 [G, 128, 128, 3].
      known, another: bool [P], whether the gallery has a face of the person, and whether it is from another clip.
      embeddings: face embeddings in the gallery's records [G, 1, E], NaN where unknown; None if they have none.
      second: uint8 [P, 128, 128, 3], a real face from a clip that is not in the gallery, if the person has one.
      labels: class names of each attribute.
    """

    ids: list[str]
    speakers: list[str]
    probe: dict[str, np.ndarray]
    gallery: list[str]
    faces: np.ndarray
    embeddings: np.ndarray | None
    known: np.ndarray
    another: np.ndarray
    second: np.ndarray
    labels: Mapping[str, tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.speakers)


def choose(clips: Clips, count: int = 0, *, same_clip: bool = False, gallery: Clips | None = None) -> EvaluationSet:
    """Chooses the first clip of each of the first `count` speakers (0: all) as probe, and the second one as gallery.

    Args:
      same_clip: the gallery holds the probe's own face, as in the paper, which is easier with a thumbnail.
      gallery: a split whose speakers are the gallery; people without a face in it count as misses.

    Raises `UserError` if the gallery has none of the people, `TooFew` if it has fewer than 2 speakers.
    """
    probes = _first_two(clips, count, whole=True)
    candidates = probes if gallery is None else _first_two(gallery)
    if gallery is not None and not probes.keys() & candidates.keys():
        raise UserError(
            f"{gallery.directory}: the gallery has no speaker of {clips.directory}; it needs faces of the same speakers"
        )
    if len(candidates) < 2:
        raise TooFew(f"{clips.directory}: a gallery of {len(candidates)}: recall needs at least 2 speakers")
    ids = {speaker: both[0]["clip_id"] for speaker, both in probes.items()}
    real = {name: _pick(both, ids.get(name), same_clip) for name, both in candidates.items()}
    gallery_ids = {speaker: real[speaker]["clip_id"] if speaker in real else None for speaker in probes}
    second = [_pick(both, gallery_ids[speaker], False)["face"] for speaker, both in probes.items()]
    return EvaluationSet(
        ids=list(ids.values()),
        speakers=list(probes),
        probe=stack([both[0] for both in probes.values()]),
        gallery=list(real),
        faces=np.stack([clip["face"] for clip in real.values()]),
        embeddings=_embeddings(list(real.values())),
        known=np.array([clip_id is not None for clip_id in gallery_ids.values()]),
        another=np.array([gallery_ids[speaker] not in (None, clip_id) for speaker, clip_id in ids.items()]),
        second=np.stack(second),
        labels=clips.schema.labels,
    )


def _embeddings(clips: list[dict]) -> np.ndarray | None:
    return np.stack([clip[FACE_EMBEDDING] for clip in clips]) if FACE_EMBEDDING in clips[0] else None


def _pick(clips: list[dict], clip_id: str | None, same: bool) -> dict:
    """The first clip with this id (`same`) or with another id; if there is none, the first clip."""
    return next((clip for clip in clips if (clip["clip_id"] == clip_id) == same), clips[0])


def _first_two(clips: Clips, count: int = 0, *, whole: bool = False) -> dict[str, list[dict]]:
    """Up to two clips of each of the first `count` speakers; 0: of all speakers. Of a gallery, only its fields.

    `whole`: all fields of the first clip.
    """
    found: dict[str, list[int]] = {}
    for i, (_, speaker) in enumerate(clips.names()):
        if count and len(found) == count and speaker not in found:
            continue
        indices = found.setdefault(speaker, [])
        if len(indices) < 2:
            indices.append(i)

    def read(indices: list[int]) -> list[dict]:
        return [clips[i] if whole and i == indices[0] else clips.read(i, GALLERY_FIELDS) for i in indices]

    return {speaker: read(indices) for speaker, indices in found.items()}


@dataclasses.dataclass(frozen=True)
class Scores:
    """Measurements of the faces of P people, one or more samples of each: arrays [P, samples].

    Attributes:
      rank: rank of the person in the gallery, from 1; 0 if not among the first `MAX_RANK` or if no face was found.
      found: whether a face was found.
      age: years estimated from the face, NaN if no face was found; None if the embedder cannot estimate it.
      labels: estimates of those attributes that the embedder can estimate, -1 if no face was found.
      psnr, ssim: against the real face.
      nearest: speakers of the nearest gallery faces to each person's first sample.
      measures: what `measures.measure` returns.
    """

    rank: np.ndarray
    found: np.ndarray
    age: np.ndarray | None
    labels: dict[str, np.ndarray]
    psnr: np.ndarray
    ssim: np.ndarray
    nearest: list[list[str]]
    measures: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class FaceScorer:
    """Scores faces of the same people against one gallery. Raises `UserError` if the gallery cannot be built."""

    def __init__(self, people: EvaluationSet, embedder: FaceEmbedder, folder: Path) -> None:
        self.people, self.embedder = people, embedder
        self.gallery = Gallery(folder, embedder.metric)
        self._real: FaceFeatures | None = None
        self._open_gallery()
        self._compared = self._read_gallery()

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
        if np.array_equal(people.faces, people.probe["face"]):
            self._real = real
        speakers = [name for name, found in zip(people.gallery, real.found, strict=True) if found]
        self.gallery.build(self.embedder.name, built_from, speakers, real.vectors[real.found])

    def _read_gallery(self) -> tuple[list[str], np.ndarray]:
        """Speakers and embeddings of the gallery: the people's own, and up to `MAX_OTHERS` of others."""
        names, vectors = self.gallery.read()
        others = np.flatnonzero(~np.isin(names, self.people.speakers))
        dropped = np.setdiff1d(others, others[:: max(1, -(-len(others) // MAX_OTHERS))])
        return np.delete(np.asarray(names), dropped).tolist(), np.delete(vectors, dropped, 0)

    @property
    def real(self) -> FaceFeatures:
        """Features of the real face of each person's own clip."""
        if self._real is None:
            self._real = self.embedder(self.people.probe["face"], progress="real faces")
        return self._real

    def score(self, images: np.ndarray, progress: str = "") -> Scores:
        """Scores of images uint8 [P, samples, 128, 128, 3]."""
        return self._scores(images, self.embedder(images.reshape(-1, *images.shape[2:]), progress=progress))

    def score_real(self) -> Scores:
        """Scores of the real faces of the people's own clips: how well the networks read and recognise them at best."""
        return self._scores(self.people.probe["face"][:, None], self.real)

    def _scores(self, images: np.ndarray, features: FaceFeatures) -> Scores:
        count, samples = images.shape[:2]
        neighbours = self._search(features)
        rank = ranks(neighbours, np.repeat(self.people.speakers, samples).tolist())
        real = self.people.probe["face"]

        def by_person(values: np.ndarray) -> np.ndarray:
            return values.reshape(count, samples)

        def by_sample(measure: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
            return np.stack([measure(images[:, i], real) for i in range(samples)], 1)

        return Scores(
            rank=by_person(rank),
            found=by_person(features.found),
            age=None if features.age is None else by_person(features.age),
            labels={name: by_person(values) for name, values in features.labels.items()},
            psnr=by_sample(metrics.psnr),
            ssim=by_sample(metrics.ssim),
            nearest=[names[:3] for names in neighbours[::samples]],
            measures=measure(images, features, self.people.speakers, self.real, self._compared, self.embedder.metric),
        )

    def _search(self, features: FaceFeatures) -> list[list[str]]:
        """The gallery's speakers, nearest first, for each face; empty if no face was found."""
        neighbours = iter(self.gallery.search(features.vectors[features.found], min(MAX_RANK, len(self.gallery))))
        return [next(neighbours) if found else [] for found in features.found]


def hits(scores: Scores, k: int) -> np.ndarray:
    """Share [P] of each person's samples whose rank is at most k."""
    return ((scores.rank >= 1) & (scores.rank <= k)).mean(1)


def summary(scores: Scores, people: EvaluationSet) -> dict:
    """All results of one system: rates with N and 95 % interval, means, and with several samples their deviation."""
    samples = scores.rank.shape[1]
    ks = metrics.reported_ks(len(people.gallery))
    out: dict = {f"r@{k}": metrics.rate(hits(scores, k), samples) for k in ks}
    for name in ATTRIBUTES:
        truth, out[name] = people.probe[name], None
        known = truth >= 0
        if name in scores.labels:
            out[name] = metrics.rate((scores.labels[name] == truth[:, None])[known].mean(1), samples)
    out["age_group"], out["age_rmse"] = _ages(scores, people)
    for name, values in (("psnr", scores.psnr), ("ssim", scores.ssim)):
        out[name] = None  # for the real face itself PSNR is infinite
        if np.isfinite(values).all():
            low, high = metrics.mean_interval(values.mean(1))
            out[name] = {"mean": float(values.mean()), "low": low, "high": high}
    out["faces_found"] = float(scores.found.mean())
    if samples > 1:
        each = {f"r@{k}": [metrics.recall(scores.rank[:, i], k) for i in range(samples)] for k in metrics.KS}
        each |= {"psnr": scores.psnr.mean(0), "ssim": scores.ssim.mean(0)}
        out["sd_over_samples"] = {name: float(np.std(values, ddof=1)) for name, values in each.items()}
    return out | dict(scores.measures)


def _ages(scores: Scores, people: EvaluationSet) -> tuple[dict | None, float | None]:
    """Recall of the age group, and the root-mean-square error in years."""
    if scores.age is None:
        return None, None
    known = np.isfinite(people.probe["age"])
    age, guess = people.probe["age"][known, None], scores.age[known]
    group = metrics.age_group(np.nan_to_num(guess, nan=-1000)) == metrics.age_group(age)
    square = (guess - age) ** 2
    rmse = float(np.sqrt(np.nanmean(square))) if np.isfinite(square).any() else None
    return metrics.rate(group.mean(1), scores.rank.shape[1]), rmse


def recalls(row: Mapping) -> dict[int, float]:
    """R@k of a summary, by k."""
    return {k: row[f"r@{k}"]["rate"] for k in metrics.KS}


def compare(a: Scores, b: Scores) -> dict:
    """Differences between systems a and b on the same people.

    In recall at each k (`metrics.paired`), and in PSNR and SSIM (`metrics.paired_means`).
    """
    recall = {f"r@{k}": metrics.paired(hits(a, k), hits(b, k)) for k in metrics.KS}
    fidelity = {"psnr": (a.psnr, b.psnr), "ssim": (a.ssim, b.ssim)}
    return recall | {name: metrics.paired_means(x.mean(1), y.mean(1)) for name, (x, y) in fidelity.items()}


def by_group(scores: Scores, people: EvaluationSet) -> dict:
    """R@k of each gender, age group and ethnicity with N, and the largest gap in R@10 within one kind."""
    kinds = {name: {text: people.probe[name] == i for i, text in enumerate(people.labels[name])} for name in ATTRIBUTES}
    decade = np.where(np.isfinite(people.probe["age"]), people.probe["age"], -1000) // metrics.DECADE
    kinds["age_group"] = {f"{int(d) * 10}-{int(d) * 10 + 9}": decade == d for d in np.unique(decade) if d >= 0}
    samples = scores.rank.shape[1]
    tables = {
        kind: {
            text: {f"r@{k}": metrics.rate(hits(scores, k)[member], samples) for k in metrics.KS}
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
        if len(set(rates.values())) > 1:
            most, least = max(rates, key=rates.__getitem__), min(rates, key=rates.__getitem__)
            gaps.append({"kind": kind, "most": most, "least": least, "gap": rates[most] - rates[least]})
    return max(gaps, key=lambda each: each["gap"], default=None)


def confusions(scores: Scores, people: EvaluationSet) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """Class names and confusion counts, from first samples, for each attribute that is known of at least one person."""
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
