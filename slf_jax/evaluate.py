"""How well a trained system does: `python -m slf_jax.evaluate --workdir runs/demo --split test`.

Every person's sampled face looks for the person in a gallery of real faces. Writes evaluation/ with results.json,
report.md and figures: recall with intervals beside controls, attributes, fidelity, what each input contributes, and
results by group.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from slf_jax import cascade, figures, sampling
from slf_jax.evaluation import controls, faces, metrics, protocol, tables
from slf_jax.evaluation.protocol import Judge, People, Scores
from slf_jax.sampling import Sampler, Scale, spell
from slf_jax.state import Trained
from tfrecords import cli
from tfrecords.reader import Clips
from tfrecords.schema import CONTINUOUS, EMBEDDING
from tfrecords.writer import write_atomically

FACES = 12  # people on the page of faces


@dataclasses.dataclass(frozen=True)
class Subject:
    """A trained system and how it is to be sampled."""

    trained: Trained
    seed: int
    samples: int
    guided: bool
    chunk: int
    memory: float

    def sampler(self, without: Sequence[str] = ()) -> Sampler:
        return Sampler(self.trained, without=without, chunk=self.chunk, memory=self.memory)

    def draw(
        self, sampler: Sampler, people: People, scales: Sequence[Scale], progress: str, *, guided: bool | None = None,
        records: Mapping[str, np.ndarray] | None = None,
    ) -> np.ndarray:  # fmt: skip
        """Faces [S, P, samples, 128, 128, 3] of the people, or of other `records` with the people's noise."""
        numbers = np.array([sampling.person_number(each) for each in people.ids])
        return sampler(
            records or people.probe, numbers, scales, self.seed, samples=self.samples, progress=progress,
            guided=self.guided if guided is None else guided,
        )  # fmt: skip


def input_groups(trained: Trained, without: Sequence[str], guided: bool) -> dict[str, tuple[str, ...]]:
    """The paper's groups of inputs that this system sees, by name; () is the guide's."""
    kinds = {part.name: part.kind for part in trained.meta.schema.constituents}
    seen = [name for name in trained.system.inputs if name not in without]
    groups = {
        "audio": tuple(name for name in seen if kinds.get(name) in (EMBEDDING, CONTINUOUS)),
        "speaker embeddings": tuple(name for name in seen if kinds.get(name) == EMBEDDING),
        "attributes": tuple(name for name in seen if name in ("language", "age", "gender", "ethnicity")),
    }
    groups = {name: parts for name, parts in groups.items() if parts}
    return {**({"guide": ()} if guided else {}), **groups}


def choose_scale(subject: Subject, sampler: Sampler, scales: Sequence[Scale], judge: Judge) -> tuple[int, dict]:
    """The scale of highest weighted recall on the judge's people, and the weighted recall of each."""
    images = subject.draw(
        sampler, judge.people, scales, f"validation: {len(scales)} scales x {len(judge.people)} people"
    )
    weighted = {}
    for scale, each in zip(scales, images, strict=True):
        scores = judge.score(each)
        weighted[spell(scale)] = metrics.weighted_recall(protocol.recalls(protocol.summary(scores, judge.people)))
    return int(np.argmax(list(weighted.values()))), weighted


def evaluate(
    subject: Subject, scales: Sequence[Scale], judge: Judge, validation: Judge | None, train: Clips | None,
    without: Sequence[str] = (),
) -> tuple[dict, dict[str, Scores], np.ndarray]:  # fmt: skip
    """Samples and scores everybody.

    Returns what results.json holds, the scores of every system and control, and the chosen scale's faces
    [P, samples, 128, 128, 3].
    """
    people, sampler = judge.people, subject.sampler(without)
    chosen, weighted = 0, None
    if validation and len(scales) > 1:
        chosen, weighted = choose_scale(subject, sampler, scales, validation)
    images = subject.draw(sampler, people, scales, f"{len(scales)} scales x {len(people)} people x {subject.samples}")
    systems = {f"scale {spell(s)}": judge.score(i, f"scale {spell(s)}") for s, i in zip(scales, images, strict=True)}
    name, scale = f"scale {spell(scales[chosen])}", scales[chosen]
    swapped = {key: x if key == "face" else np.roll(x, 1, 0) for key, x in people.probe.items()}
    other = subject.draw(sampler, people, [scale], "another person's conditions", records=swapped)[0]
    compared = {"another person's conditions": judge.score(other)}
    compared |= _controls(subject, judge, train)
    masked = {}
    for group, parts in input_groups(subject.trained, without, subject.guided).items():
        kept = sampler if group == "guide" else subject.sampler((*without, *parts))
        drawn = subject.draw(kept, people, [scale], f"without {group}", guided=False if group == "guide" else None)[0]
        masked[f"without {group}"] = judge.score(drawn)
    everything = {**systems, **masked, **compared}
    summaries = {each: protocol.summary(scores, people) for each, scores in everything.items()}
    results = {
        "chosen": name,
        "chosen_by": "validation people" if weighted else "the first scale given",
        "validation_weighted_recall": weighted,
        "systems": {each: summaries[each] for each in systems},
        "best_on_test": max(systems, key=lambda each: summaries[each]["r@1"]["rate"]) if len(scales) > 1 else None,
        "masked": {each: summaries[each] for each in masked},
        "controls": {each: summaries[each] for each in compared},
        "random": _random(judge, subject.seed),
        "significance": _significance(summaries[name], {each: summaries[each] for each in masked}),
        "differences": {
            each: protocol.compare(everything[name], scores) for each, scores in everything.items() if each != name
        },
        "groups": protocol.by_group(everything[name], people),
    }
    return results, everything, images[chosen]


def _controls(subject: Subject, judge: Judge, train: Clips | None) -> dict[str, Scores]:
    """Scores of faces that know less than the system, and of the real face itself."""
    real = judge.people.probe["face"]
    made = {"guide, bicubic": controls.bicubic(real)} if subject.guided else {}
    if train:
        made["mean training face"] = np.broadcast_to(controls.mean_face(train), real.shape)
        made["training face of the same gender"] = controls.same_gender(
            train, judge.people.probe["gender"], subject.seed
        )
    if judge.people.has_other.any():
        made["real face of the other clip"] = real
    return {name: judge.score(images[:, None]) for name, images in made.items()}


def _random(judge: Judge, seed: int) -> dict:
    """Recall of a random order of the gallery: in closed form, and drawn once for these people."""
    size = len(judge.gallery)
    drawn = np.random.default_rng(seed).integers(1, size + 1, len(judge.people))
    return {
        f"r@{k}": {"rate": metrics.random_recall(k, size), "simulated": metrics.recall(drawn, k)} for k in metrics.KS
    }


def _significance(full: Mapping, masked: Mapping[str, Mapping]) -> dict:
    found = {}
    for name, summed in masked.items():
        s = metrics.significance(protocol.recalls(full), protocol.recalls(summed))
        found[name.removeprefix("without ")] = {"s": None if np.isnan(s) else s, "band": metrics.band(s)}
    return found


def page_of_faces(images: np.ndarray, judge: Judge, scores: Scores, guided: bool, path: Path) -> None:
    """Guide, generated face, real face, and the nearest faces of the gallery, for the first people."""
    people, count = judge.people, min(FACES, len(judge.people))
    by_speaker = dict(zip(people.speakers, people.other["face"], strict=True))
    blank = np.full_like(images[0, 0], 255)
    rows, names = [], []
    for i in range(count):
        near = [by_speaker[name] for name in scores.nearest[i]]
        near += [blank] * (3 - len(near))
        rows.append(np.stack([images[i, 0], people.probe["face"][i], *near]))
        rank = scores.rank[i, 0]
        names.append(f"{people.speakers[i][:20]}: rank {rank or 'none'}")
    page, columns = np.stack(rows), ["generated", "real", "nearest", "second", "third"]
    if guided:
        guides = cascade.make_guide(cascade.to_float(jnp.asarray(people.probe["face"][:count])))
        guides = figures.enlarge(np.asarray(cascade.to_uint8(guides)), page.shape[2])
        page, columns = np.concatenate([guides[:, None], page], 1), ["8x8 guide", *columns]
    figures.image_grid(page, path, columns, names)


def write(
    results: dict, scores: Mapping[str, Scores], images: np.ndarray, judge: Judge, guided: bool, out: Path
) -> None:
    """Writes evaluation/: the figures of results.json, the same for reading, and pictures."""
    chosen = scores[results["chosen"]]
    page_of_faces(images, judge, chosen, guided, out / "faces.png")
    size = min(protocol.DEEPEST, len(judge.gallery))
    shown = [results["chosen"], *results["masked"], *results["controls"]]
    curves = {name: [metrics.recall(scores[name].rank, k) for k in range(1, size + 1)] for name in shown}
    figures.rank_curves(curves, len(judge.gallery), out / "rank_curve.png")
    if len(results["systems"]) > 1:
        figures.recall_by_scale({results["subject"]: results["systems"]}, out / "scales.png")
    figures.confusions(protocol.confusions(chosen, judge.people), out / "confusion.png")
    write_atomically(out / "results.json", json.dumps(results, indent=2).encode())
    write_atomically(out / "report.md", tables.markdown(results).encode())


def choose_embedder(name: str, metric: str, detector: str, train: Clips | None) -> faces.Embedder:
    """The one asked for; "auto" is the paper's where its weights are at hand, and else eigenfaces."""
    if name != "auto":
        return faces.make(name, metric, detector, train)
    try:
        return faces.make("vgg-face", metric, detector, train)
    except cli.UserError as error:
        print(f"note: eigenfaces compare the faces, for want of a face network ({error})", file=sys.stderr)
        return faces.make("eigenfaces", metric, detector, train)


def validation_judge(directory: str | Path, same_clip: bool, embedder: faces.Embedder, gallery: Path) -> Judge | None:
    """Who judges the validation people that a scale is chosen by; None, and a note, where there are none."""
    try:
        people = protocol.choose(Clips(directory, "validation"), same_clip=same_clip)
    except cli.UserError as error:
        print(f"note: no scale can be chosen on validation people ({error}); the first is taken", file=sys.stderr)
        return None
    return Judge(people, embedder, gallery / "validation")


def _optional(directory: str | Path, split: str) -> Clips | None:
    try:
        return Clips(directory, split)
    except cli.UserError:
        return None


def main(argv: Sequence[str] | None = None) -> None:
    arguments = cli.parser(
        "slf_jax.evaluate",
        "Samples every person of a split and measures recall, attributes and fidelity against real faces.",
        [
            "python -m slf_jax.evaluate --workdir runs/demo --scales 0,1,2,4",
            "python -m slf_jax.evaluate --workdir runs/vox2 --data data/slf118 --scales 0,2,4,8 --embedder arcface",
            "python -m slf_jax.evaluate --workdir runs/vox2 --embedder vgg-face --same-clip   # as the paper",
            "python -m slf_jax.evaluate --workdir runs/demo --no-guide --samples 4            # generation from voice",
        ],
    )
    sampling.add_arguments(arguments)
    arguments.add_argument(
        "--scales", default="1", help="guidance scales; of several one is chosen on validation people (default: 1)"
    )
    arguments.add_argument("--people", type=int, default=0, help="how many speakers (default: all)")
    arguments.add_argument("--no-guide", action="store_true", help="no thumbnail: from noise")
    arguments.add_argument(
        "--embedder", default="auto", choices=("auto", *faces.EMBEDDERS),
        help="what compares faces; auto: vgg-face, or eigenfaces where it has no weights (default: auto)",
    )  # fmt: skip
    arguments.add_argument(
        "--metric", default="", choices=("", "l2", "cosine"), help="default: l2 for vgg-face, cosine for the others"
    )
    arguments.add_argument("--detector", default="opencv", help="of DeepFace, or skip (default: opencv, as the paper)")
    arguments.add_argument(
        "--same-clip", action="store_true",
        help="the gallery holds the clip that the guide comes from, as in the paper; else another where there is one",
    )  # fmt: skip
    arguments.add_argument("--out", type=Path, help="folder to write to (default: WORKDIR/evaluation)")
    args, trained = sampling.parse(arguments, argv)
    scales, without = sampling.parse_scales(args.scales), sampling.names(args.without)
    if args.people < 0:
        raise cli.UserError(f"--people {args.people}: give at least 1, or leave it out for all")
    clips = sampling.open_clips(trained, args, without)
    train = _optional(clips.directory, "train") or _optional(trained.meta.config.data.dir, "train")
    embedder, gallery = choose_embedder(args.embedder, args.metric, args.detector, train), args.workdir / "gallery"
    judge = Judge(protocol.choose(clips, args.people, same_clip=args.same_clip), embedder, gallery)
    several = len(scales) > 1 and args.split != "validation"
    validation = validation_judge(clips.directory, args.same_clip, embedder, gallery) if several else None
    subject = Subject(trained, args.seed, args.samples, not args.no_guide, args.chunk, args.memory)
    found, scores, images = evaluate(subject, scales, judge, validation, train, without)
    results = {"subject": args.workdir.name, **_receipt(args, subject, judge, clips, without), **found}
    out = args.out or args.workdir / "evaluation"
    write(results, scores, images, judge, subject.guided, out)
    print(tables.short(results))
    print(f"{out / 'report.md'}\n{out / 'results.json'}")


def _receipt(args, subject: Subject, judge: Judge, clips: Clips, without: Sequence[str]) -> dict:
    """How the figures came about."""
    settings = subject.trained.meta.config.sample.to_dict()
    return {
        "data": str(clips.directory), "split": args.split, "people": len(judge.people), "gallery": len(judge.gallery),
        "gallery_of_another_clip": int(judge.people.has_other.sum()), "embedder": judge.embedder.name,
        "metric": judge.embedder.metric, "fingerprint": judge.embedder.fingerprint, "guided": subject.guided,
        "without": list(without), "inputs": list(subject.trained.system.without(without).inputs),
        "seed": subject.seed, "samples": subject.samples, "checkpoints": subject.trained.digests,
        "sampler": {**settings, "evaluations": cascade.sample_settings(subject.trained.meta.config).evaluations},
    }  # fmt: skip


if __name__ == "__main__":
    cli.run(main)
