"""Evaluates a trained system: at several scales, without each group of its inputs, and against controls."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from slf_jax.evaluation import controls, identity_head, metrics, protocol
from slf_jax.evaluation.protocol import EvaluationSet, FaceScorer, Scores
from slf_jax.inference.groups import named_groups
from slf_jax.inference.people import person_number
from slf_jax.inference.sampler import Sampler
from slf_jax.inference.scales import Scales
from slf_jax.inference.trained import Trained
from slf_jax.streams import generator
from tfrecords.reader import Clips
from tfrecords.schema import EMBEDDING

RANDOM_ORDERS = 1000  # simulated random orders of the gallery


@dataclasses.dataclass(frozen=True)
class EvaluatedSystem:
    """A trained system and how to sample it; `without`: inputs to mask."""

    trained: Trained
    sampler: Sampler
    seed: int
    samples: int
    use_thumbnail: bool
    without: tuple[str, ...] = ()

    @property
    def inputs(self) -> tuple[str, ...]:
        """The inputs that it uses."""
        return self.trained.system.without(self.without).inputs

    def draw(self, people: EvaluationSet, scales: Scales, progress: str, probe: Mapping | None = None) -> np.ndarray:
        """Samples faces [S, P, samples, 128, 128, 3] of the people; `probe`: other records to use with their noise."""
        numbers = np.array([person_number(clip_id) for clip_id in people.ids])
        return self.sampler(
            people.probe if probe is None else probe, numbers, scales.strengths, self.seed, samples=self.samples,
            use_thumbnail=self.use_thumbnail, without=self.without, groups=scales.groups, progress=progress,
            numbers=scales.numbers,
        )  # fmt: skip


def input_groups(subject: EvaluatedSystem) -> dict[str, tuple[str, ...]]:
    """The constituents in each of the paper's groups of inputs that this system uses; none in the group "thumbnail"."""
    kinds = {part.name: part.kind for part in subject.trained.meta.schema.constituents}
    named = named_groups(subject.trained, subject.inputs)
    groups = {
        "audio": named["voice"],
        "speaker embeddings": tuple(name for name in subject.inputs if kinds.get(name) == EMBEDDING),
        "attributes": named["attributes"],
    }
    groups = {name: parts for name, parts in groups.items() if parts}
    return {**({"thumbnail": ()} if subject.use_thumbnail else {}), **groups}


def choose_scale(subject: EvaluatedSystem, scales: Scales, scorer: FaceScorer) -> tuple[int, dict]:
    """The index of the scale of highest weighted recall on the scorer's people, and the weighted recall of each."""
    images = subject.draw(scorer.people, scales, f"validation: {len(scales)} scales x {len(scorer.people)} people")
    weighted = [
        metrics.weighted_recall(protocol.recalls(protocol.summary(scorer.score(each), scorer.people)))
        for each in images
    ]
    return int(np.argmax(weighted)), {
        scales.key(point): each for point, each in zip(scales.points, weighted, strict=True)
    }


def evaluate_system(
    subject: EvaluatedSystem,
    scales: Scales,
    scorer: FaceScorer,
    validation: FaceScorer | None,
    train: Clips | None,
) -> tuple[dict, dict[str, Scores], np.ndarray]:
    """Samples and scores all people.

    Returns the content of results.json, the scores of every system and control, and the faces
    [P, samples, 128, 128, 3] at the chosen scale.
    """
    people, chosen, weighted = scorer.people, 0, None
    if validation and len(scales) > 1:
        chosen, weighted = choose_scale(subject, scales, validation)
    images = subject.draw(people, scales, f"{len(scales)} scales x {len(people)} people x {subject.samples}")
    systems = {
        scales.label(point): scorer.score(each, scales.label(point))
        for point, each in zip(scales.points, images, strict=True)
    }
    name, scale = scales.label(scales.points[chosen]), dataclasses.replace(scales, points=[scales.points[chosen]])
    masked = {
        f"without {group}": scorer.score(changed.draw(people, scale, f"without {group}")[0])
        for group, changed in _masked(subject).items()
    }
    compared = _swapped(subject, scale, scorer) | _controls(subject, scorer, train)
    if subject.samples > 1:
        mean = np.round(images[chosen].mean(1, keepdims=True)).astype(np.uint8)
        compared[f"mean of {subject.samples} samples"] = scorer.score(mean)
    everything = {**systems, **masked, **compared}
    summaries = {each: protocol.summary(scores, people) for each, scores in everything.items()}
    results = {
        "chosen": name,
        "chosen_by": "validation people" if weighted else "the first scale given",
        "validation_weighted_recall": weighted,
        "systems": {each: summaries[each] for each in systems},
        "axes": scales.axes(),
        "best_on_test": max(systems, key=lambda each: summaries[each]["r@1"]["rate"]) if len(scales) > 1 else None,
        "masked": {each: summaries[each] for each in masked},
        "controls": {each: summaries[each] for each in compared},
        "random": _random(scorer, subject.seed, everything),
        "significance": _significance(summaries[name], {each: summaries[each] for each in masked}),
        "differences": {
            each: protocol.compare(everything[name], scores) for each, scores in everything.items() if each != name
        },
        "groups": protocol.by_group(everything[name], people),
        "real": protocol.summary(scorer.score_real(), people),
        "identity_head": identity_head.evaluate_head(subject.trained, people, _head_inputs(subject)),
    }
    return results, everything, images[chosen]


def _masked(subject: EvaluatedSystem) -> dict[str, EvaluatedSystem]:
    """The same system without one group of inputs, by group."""
    changed = {}
    for group, parts in input_groups(subject).items():
        changes = {"use_thumbnail": False} if group == "thumbnail" else {"without": (*subject.without, *parts)}
        changed[group] = dataclasses.replace(subject, **changes)
    return changed


def _head_inputs(subject: EvaluatedSystem) -> dict[str, tuple[str, ...]]:
    """What the identity head predicts from, and the inputs masked for it: all inputs, and the voice alone."""
    audio = input_groups(subject).get("audio", ())
    others = tuple(name for name in subject.inputs if name not in audio)
    systems = {"all inputs": subject.without}
    return systems | ({"voice alone": (*subject.without, *others)} if audio and others else {})


def _swapped(subject: EvaluatedSystem, scale: Scales, scorer: FaceScorer) -> dict[str, Scores]:
    """Scores of each person's thumbnail and noise with another person's voice, and with all of their conditions."""
    groups, scores = input_groups(subject), {}
    for what, parts in {"voice": groups.get("audio", ()), "voice and attributes": subject.inputs}.items():
        if parts:
            probe = controls.swap_people(scorer.people.probe, parts)
            drawn = subject.draw(scorer.people, scale, f"another person's {what}", probe)[0]
            scores[f"another person's {what}"] = scorer.score(drawn)
    return scores


def _controls(subject: EvaluatedSystem, scorer: FaceScorer, train: Clips | None) -> dict[str, Scores]:
    """Scores of faces made from less information than the system has, and of real faces."""
    real = scorer.people.probe["face"]
    faces = {"thumbnail, bicubic": controls.bicubic(real)} if subject.use_thumbnail else {}
    if train:
        faces["mean training face"] = np.broadcast_to(controls.mean_face(train), real.shape)
        faces["training face of the same gender"] = controls.same_gender(
            train, scorer.people.probe["gender"], subject.seed
        )
    gallery = dict(zip(scorer.people.gallery, scorer.people.faces, strict=True))
    second = dict(zip(scorer.people.speakers, scorer.people.second, strict=True))
    if any(name in gallery and (face != gallery[name]).any() for name, face in second.items()):
        faces["real face of another clip"] = scorer.people.second
    own = {name for name, images in faces.items() if np.array_equal(images, real)}
    return {
        name: scorer.score_real() if name in own else scorer.score(images[:, None]) for name, images in faces.items()
    }


def _random(scorer: FaceScorer, seed: int, systems: Mapping[str, Scores]) -> dict:
    """Recall of a random order of the gallery: expected, and simulated; p of each system's R@10 if it were random."""
    size = len(scorer.gallery)
    share = scorer.people.known.mean()
    ranks = generator(seed, "random order").integers(1, size + 1, (RANDOM_ORDERS, len(scorer.people)))
    ranks = np.where(scorer.people.known, ranks, 0)
    rates = {
        f"r@{k}": {"rate": share * metrics.random_recall(k, size), "simulated": metrics.recall(ranks, k)}
        for k in metrics.reported_ks(size)
    }
    chance = metrics.random_recall(10, size)
    above = {
        name: metrics.p_above_chance(protocol.hits(scores, 10)[scorer.people.known] > 0.5, chance)
        for name, scores in systems.items()
        if scores.rank.shape[1] == 1  # with several samples, a person's hits are not one trial
    }
    return {"orders": RANDOM_ORDERS, **rates, "p_of_r@10": above}


def _significance(full: Mapping, masked: Mapping[str, Mapping]) -> dict:
    found = {}
    for name, reduced in masked.items():
        s = metrics.significance(protocol.recalls(full), protocol.recalls(reduced))
        found[name.removeprefix("without ")] = {"s": None if np.isnan(s) else s, "band": metrics.band(s)}
    return found
