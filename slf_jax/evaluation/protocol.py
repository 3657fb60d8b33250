"""Who is sampled, whom the gallery holds, how a set of faces is scored, and what the scores come to."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from slf_jax.evaluation import metrics
from slf_jax.evaluation.faces import ATTRIBUTES, Described, Embedder
from slf_jax.evaluation.gallery import Gallery, ranks
from tfrecords import cli
from tfrecords.reader import Clips, stack

DEEPEST = 100  # ranks are known up to here
LEAST_GROUP = 5  # people, below which a group's recall is not compared


@dataclasses.dataclass(frozen=True)
class People:
    """One probe of each speaker, and the same speakers' faces in the gallery.

    probe, other: batches of records of the same P people; `other` is another clip's where the speaker has one
    (`has_other` [P]) and the probe itself elsewhere.
    """

    ids: list[str]
    speakers: list[str]
    probe: dict[str, np.ndarray]
    other: dict[str, np.ndarray]
    other_ids: list[str]
    has_other: np.ndarray
    labels: Mapping[str, tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.speakers)


def choose(clips: Clips, count: int = 0, *, same_clip: bool = False) -> People:
    """The first clip of each of the first `count` speakers (0: of all) as probe, the second for the gallery.

    `same_clip`: the gallery holds the probe's own face, as in the paper: with a guide this is easier.
    """
    found: dict[str, list[dict]] = {}
    for i in range(len(clips)):
        clip = clips[i]
        if count and len(found) == count and clip["speaker_id"] not in found:
            continue
        mine = found.setdefault(clip["speaker_id"], [])
        if len(mine) < (1 if same_clip else 2):
            mine.append(clip)
    if len(found) < 2:
        raise cli.UserError(f"{clips.directory}: a gallery of {len(found)}: recall needs at least 2 speakers")
    probes, others = [each[0] for each in found.values()], [each[-1] for each in found.values()]
    return People(
        ids=[clip["clip_id"] for clip in probes], speakers=list(found), probe=stack(probes), other=stack(others),
        other_ids=[clip["clip_id"] for clip in others], has_other=np.array([len(each) > 1 for each in found.values()]),
        labels=clips.schema.labels,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Scores:
    """What was measured on the faces of P people, a few samples of each: arrays [P, samples].

    rank: of the person in the gallery, 0 where not among the first `DEEPEST` or where no face was found. age: years as
    guessed from the face, NaN where no face was found. labels: guesses, -1 where no face was found.
    """

    rank: np.ndarray
    found: np.ndarray
    age: np.ndarray
    labels: dict[str, np.ndarray]
    psnr: np.ndarray
    ssim: np.ndarray
    nearest: list[list[str]]  # speakers of the nearest gallery faces of each person's first sample


class Judge:
    """Scores faces of the same people against one gallery."""

    def __init__(self, people: People, embedder: Embedder, folder: Path) -> None:
        self.people, self.embedder = people, embedder
        self.gallery = Gallery(folder, embedder.metric)
        self._open_gallery()

    def _open_gallery(self) -> None:
        faces = hashlib.sha256(self.people.other["face"].tobytes()).hexdigest()
        built_from = {"embedder": self.embedder.fingerprint, "faces": faces, "speakers": self.people.speakers}
        if self.gallery.open(self.embedder.name, built_from):
            return
        real = self.embedder(self.people.other["face"], progress="gallery")
        if not real.found.any():
            raise cli.UserError(
                f"{self.embedder.name}: no face was found in any of the {len(self.people)} real faces; "
                "try another --detector, as in --detector skip"
            )
        speakers = [name for name, seen in zip(self.people.speakers, real.found, strict=True) if seen]
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

        return Scores(
            table(rank), table(seen.found), table(seen.age), {name: table(x) for name, x in seen.labels.items()},
            *fidelity, [names[:3] for names in neighbours[::samples]],
        )  # fmt: skip

    def _search(self, seen: Described) -> list[list[str]]:
        """The gallery's speakers by distance for each face, none where no face was found."""
        neighbours = iter(self.gallery.search(seen.vectors[seen.found], min(DEEPEST, len(self.gallery))))
        return [next(neighbours) if found else [] for found in seen.found]


def hits(scores: Scores, k: int) -> np.ndarray:
    """Each person's share [P] of samples that are recalled at k."""
    return ((scores.rank >= 1) & (scores.rank <= k)).mean(1)


def summary(scores: Scores, people: People) -> dict:
    """All figures of one system: rates with N and 95 % interval, means, sd over samples where there are several."""
    out = {f"r@{k}": _rate(hits(scores, k), scores.rank.shape[1]) for k in metrics.KS}
    for name in ATTRIBUTES:
        truth = people.probe[name]
        known = truth >= 0
        out[name] = _rate((scores.labels[name] == truth[:, None])[known].mean(1), scores.rank.shape[1])
    known = np.isfinite(people.probe["age"])
    age = people.probe["age"][known, None]
    group = metrics.age_group(np.nan_to_num(scores.age[known], nan=-1000)) == metrics.age_group(age)
    out["age_group"] = _rate(group.mean(1), scores.rank.shape[1])
    square = (scores.age[known] - age) ** 2
    out["age_rmse"] = float(np.sqrt(np.nanmean(square))) if np.isfinite(square).any() else None
    for name, values in (("psnr", scores.psnr), ("ssim", scores.ssim)):
        out[name] = None  # the real face itself is infinitely like itself
        if np.isfinite(values).all():
            low, high = metrics.bootstrap(values.mean(1))
            out[name] = {"mean": float(values.mean()), "low": low, "high": high}
    out["faces_found"] = float(scores.found.mean())
    samples = scores.rank.shape[1]
    if samples > 1:
        each = {f"r@{k}": [metrics.recall(scores.rank[:, i], k) for i in range(samples)] for k in metrics.KS}
        each |= {"psnr": scores.psnr.mean(0), "ssim": scores.ssim.mean(0)}
        out["sd_over_samples"] = {name: float(np.std(values, ddof=1)) for name, values in each.items()}
    return out


def _rate(shares: np.ndarray, samples: int) -> dict | None:
    """A rate over people with its interval: Wilson's, or by bootstrap over people where each has several samples."""
    if not len(shares):
        return None
    low, high = metrics.wilson(shares.sum(), len(shares)) if samples == 1 else metrics.bootstrap(shares)
    return {"rate": float(shares.mean()), "low": low, "high": high, "n": len(shares)}


def recalls(summed: Mapping) -> dict[int, float]:
    """R@k by k of a summary."""
    return {k: summed[f"r@{k}"]["rate"] for k in metrics.KS}


def compare(a: Scores, b: Scores) -> dict:
    """By how much system a recalls more than b of the same people: paired bootstrap, and McNemar on first samples."""
    out = {}
    for k in metrics.KS:
        difference = hits(a, k) - hits(b, k)
        low, high = metrics.bootstrap(difference)
        p = metrics.mcnemar(*(hits(x, k) > 0.5 for x in (a, b))) if a.rank.shape[1] == 1 else None
        out[f"r@{k}"] = {"difference": float(difference.mean()), "low": low, "high": high, "p_mcnemar": p}
    return out


def by_group(scores: Scores, people: People) -> dict:
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
        rates = {text: group["r@10"]["rate"] for text, group in groups.items() if group["r@10"]["n"] >= LEAST_GROUP}
        if len(rates) > 1:
            most, least = max(rates, key=rates.get), min(rates, key=rates.get)
            gaps.append({"kind": kind, "most": most, "least": least, "gap": rates[most] - rates[least]})
    return max(gaps, key=lambda each: each["gap"], default=None)


def confusions(scores: Scores, people: People) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """For each attribute that is known of anybody: class names, and counts of guesses from first samples."""
    tables = {}
    for name in ATTRIBUTES:
        known = people.probe[name] >= 0
        if known.any():
            names = people.labels[name]
            tables[name] = (
                names,
                metrics.confusion(people.probe[name][known], scores.labels[name][known, 0], len(names)),
            )
    known = np.isfinite(people.probe["age"])
    if known.any():
        truth = metrics.age_group(people.probe["age"][known])
        guess = metrics.age_group(np.nan_to_num(scores.age[known, 0], nan=-10))
        first, last = min(truth.min(), guess[guess >= 0].min(initial=99)), max(truth.max(), guess.max())
        guess = np.where(guess < 0, -1, guess - first)
        names = tuple(f"{d}0-{d}9" for d in range(first, last + 1))
        tables["age group"] = names, metrics.confusion(truth - first, guess, len(names))
    return tables
