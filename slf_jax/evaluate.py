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

from slf_common import cli
from slf_common.errors import UserError
from slf_common.files import check_writable, write_atomically
from slf_jax import cascade, figures, sampling
from slf_jax.evaluation import controls, faces, metrics, protocol, tables
from slf_jax.evaluation.protocol import Judge, People, Scores
from slf_jax.sampling import Sampler, Scale, spell
from slf_jax.state import Trained
from slf_jax.streams import generator
from tfrecords.reader import Absent, Clips
from tfrecords.schema import CONTINUOUS, EMBEDDING

FACES = 12  # people on the page of faces
RANDOM_ORDERS = 1000
FILES = ("results.json", "report.md", "faces.png", "rank_curve.png", "scales.png", "confusion.png")


@dataclasses.dataclass(frozen=True)
class Subject:
    """A trained system and how it is to be sampled; `without`: inputs that are masked."""

    trained: Trained
    sampler: Sampler
    seed: int
    samples: int
    guided: bool
    without: tuple[str, ...] = ()

    @property
    def inputs(self) -> tuple[str, ...]:
        """What it sees."""
        return self.trained.system.without(self.without).inputs

    def draw(self, people: People, scales: Sequence[Scale], progress: str, probe: Mapping | None = None) -> np.ndarray:
        """Faces [S, P, samples, 128, 128, 3] of the people, or of the records `probe` with the people's noise."""
        numbers = np.array([sampling.person_number(each) for each in people.ids])
        return self.sampler(
            people.probe if probe is None else probe, numbers, scales, self.seed, samples=self.samples,
            guided=self.guided, without=self.without, progress=progress,
        )  # fmt: skip


def input_groups(subject: Subject) -> dict[str, tuple[str, ...]]:
    """The paper's groups of inputs that this system sees, by name; () is the guide's."""
    kinds = {part.name: part.kind for part in subject.trained.meta.schema.constituents}
    groups = {
        "audio": tuple(name for name in subject.inputs if kinds.get(name) in (EMBEDDING, CONTINUOUS)),
        "speaker embeddings": tuple(name for name in subject.inputs if kinds.get(name) == EMBEDDING),
        "attributes": tuple(name for name in subject.inputs if name in ("language", "age", "gender", "ethnicity")),
    }
    groups = {name: parts for name, parts in groups.items() if parts}
    return {**({"guide": ()} if subject.guided else {}), **groups}


def choose_scale(subject: Subject, scales: Sequence[Scale], judge: Judge) -> tuple[int, dict]:
    """The place of the scale of highest weighted recall on the judge's people, and the weighted recall of each."""
    images = subject.draw(judge.people, scales, f"validation: {len(scales)} scales x {len(judge.people)} people")
    weighted = [
        metrics.weighted_recall(protocol.recalls(protocol.summary(judge.score(each), judge.people))) for each in images
    ]
    return int(np.argmax(weighted)), {spell(scale): each for scale, each in zip(scales, weighted, strict=True)}


def evaluate(
    subject: Subject, scales: Sequence[Scale], judge: Judge, validation: Judge | None, train: Clips | None
) -> tuple[dict, dict[str, Scores], np.ndarray]:
    """Samples and scores everybody.

    Returns what results.json holds, the scores of every system and control, and the chosen scale's faces
    [P, samples, 128, 128, 3].
    """
    people, chosen, weighted = judge.people, 0, None
    if validation and len(scales) > 1:
        chosen, weighted = choose_scale(subject, scales, validation)
    images = subject.draw(people, scales, f"{len(scales)} scales x {len(people)} people x {subject.samples}")
    systems = {f"scale {spell(s)}": judge.score(i, f"scale {spell(s)}") for s, i in zip(scales, images, strict=True)}
    name, scale = f"scale {spell(scales[chosen])}", scales[chosen]
    masked = {
        f"without {group}": judge.score(changed.draw(people, [scale], f"without {group}")[0])
        for group, changed in _masked(subject).items()
    }
    compared = _swapped(subject, scale, judge) | _controls(subject, judge, train)
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


def _masked(subject: Subject) -> dict[str, Subject]:
    """The same system without each group of its inputs."""
    changed = {}
    for group, parts in input_groups(subject).items():
        changes = {"guided": False} if group == "guide" else {"without": (*subject.without, *parts)}
        changed[group] = dataclasses.replace(subject, **changes)
    return changed


def _swapped(subject: Subject, scale: Scale, judge: Judge) -> dict[str, Scores]:
    """Scores of the people's own thumbnails and noise with the next person's voice, and with all of his conditions."""
    groups, scores = input_groups(subject), {}
    for what, parts in {"voice": groups.get("audio", ()), "voice and attributes": subject.inputs}.items():
        if parts:
            probe = {key: np.roll(x, 1, 0) if key in parts else x for key, x in judge.people.probe.items()}
            drawn = subject.draw(judge.people, [scale], f"another person's {what}", probe)[0]
            scores[f"another person's {what}"] = judge.score(drawn)
    return scores


def _controls(subject: Subject, judge: Judge, train: Clips | None) -> dict[str, Scores]:
    """Scores of faces that know less than the system, and of the real face itself."""
    real = judge.people.probe["face"]
    made = {"guide, bicubic": controls.bicubic(real)} if subject.guided else {}
    if train:
        made["mean training face"] = np.broadcast_to(controls.mean_face(train), real.shape)
        made["training face of the same gender"] = controls.same_gender(
            train, judge.people.probe["gender"], subject.seed
        )
    held = dict(zip(judge.people.gallery, judge.people.faces, strict=True))
    second = dict(zip(judge.people.speakers, judge.people.second, strict=True))
    if any(name in held and (face != held[name]).any() for name, face in second.items()):
        made["real face of another clip"] = judge.people.second
    return {name: judge.score(images[:, None]) for name, images in made.items()}


def _random(judge: Judge, seed: int) -> dict:
    """Recall of a random order of the gallery: in closed form, and over as many drawn ones."""
    size = len(judge.gallery)
    share = judge.people.known.mean()
    drawn = generator(seed, "random order").integers(1, size + 1, (RANDOM_ORDERS, len(judge.people)))
    drawn = np.where(judge.people.known, drawn, 0)
    rates = {
        f"r@{k}": {"rate": share * metrics.random_recall(k, size), "simulated": metrics.recall(drawn, k)}
        for k in metrics.KS
    }
    return {"orders": RANDOM_ORDERS, **rates}


def _significance(full: Mapping, masked: Mapping[str, Mapping]) -> dict:
    found = {}
    for name, summed in masked.items():
        s = metrics.significance(protocol.recalls(full), protocol.recalls(summed))
        found[name.removeprefix("without ")] = {"s": None if np.isnan(s) else s, "band": metrics.band(s)}
    return found


def page_of_faces(images: np.ndarray, judge: Judge, scores: Scores, guided: bool, path: Path) -> None:
    """Guide, generated face, real face, and the nearest faces of the gallery, for the first people."""
    people, count = judge.people, min(FACES, len(judge.people))
    by_speaker = dict(zip(people.gallery, people.faces, strict=True))
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
    faces.check_detector(detector)
    try:
        return faces.make("vgg-face", metric, detector, train)
    except faces.NoNetwork as error:
        print(f"note: eigenfaces compare the faces, for want of a face network ({error})", file=sys.stderr)
        return faces.make("eigenfaces", metric, detector, train)


def validation_judge(directory: str | Path, same_clip: bool, embedder: faces.Embedder, gallery: Path) -> Judge | None:
    """Who judges the validation people that a scale is chosen by; None, and a note, where there are none."""
    try:
        people = protocol.choose(Clips(directory, "validation"), same_clip=same_clip)
    except (Absent, protocol.TooFew) as error:
        print(f"note: no scale can be chosen on validation people ({error}); the first is taken", file=sys.stderr)
        return None
    return Judge(people, embedder, gallery / "validation")


def gallery_folder(workdir: Path, out: Path) -> Path:
    """Where the gallery lies: with the run, so that it is made once; with the results if the run is read-only."""
    try:
        check_writable(workdir / "gallery")
    except UserError:
        return out / "gallery"
    return workdir / "gallery"


def _optional(directory: str | Path, split: str) -> Clips | None:
    """The split, None where there is no such dataset or it has no such split."""
    try:
        return Clips(directory, split)
    except Absent:
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
    arguments.add_argument(
        "--detector", default="opencv",
        help="any of DeepFace's (retinaface, mtcnn, dlib, ...), or skip (default: opencv, as the paper)",
    )  # fmt: skip
    arguments.add_argument(
        "--same-clip", action="store_true",
        help="the gallery holds the clip that the guide comes from, as in the paper; else another where there is one",
    )  # fmt: skip
    arguments.add_argument(
        "--gallery", default="", metavar="DIR",
        help="dataset folder whose speakers in that split are the gallery (default: the people themselves)",
    )  # fmt: skip
    args, trained = sampling.parse(arguments, argv, "evaluation", *FILES)
    scales, without = sampling.parse_scales(args.scales), sampling.names(args.without)
    if args.people < 0:
        raise UserError(f"--people {args.people}: give at least 1, or leave it out for all")
    clips = sampling.open_clips(trained, args, without)
    train = _optional(clips.directory, "train") or _optional(trained.meta.config.data.dir, "train")
    embedder = choose_embedder(args.embedder, args.metric, args.detector, train)
    folder = gallery_folder(args.workdir, args.out)
    others = Clips(args.gallery, args.split) if args.gallery else None
    people = protocol.choose(clips, args.people, same_clip=args.same_clip, gallery=others)
    judge = Judge(people, embedder, folder)
    several = len(scales) > 1 and args.split != "validation"
    # A dataset of test people alone has nobody to choose a scale on: those held out in training do.
    held_out = clips.directory if _optional(clips.directory, "validation") else trained.meta.config.data.dir
    validation = validation_judge(held_out, args.same_clip, embedder, folder) if several else None
    sampler = Sampler(trained, chunk=args.chunk, memory=args.memory)
    subject = Subject(trained, sampler, args.seed, args.samples, not args.no_guide, without)
    found, scores, images = evaluate(subject, scales, judge, validation, train)
    results = {"subject": args.workdir.name, **_receipt(args, subject, judge, clips), **found}
    write(results, scores, images, judge, subject.guided, args.out)
    print(tables.short(results))
    print(f"{args.out / 'report.md'}\n{args.out / 'results.json'}")


def _receipt(args, subject: Subject, judge: Judge, clips: Clips) -> dict:
    """How the figures came about."""
    settings = subject.trained.meta.config.sample.to_dict()
    return {
        "data": str(clips.directory), "split": args.split, "people": len(judge.people), "gallery": len(judge.gallery),
        "gallery_of_another_clip": int(judge.people.another.sum()),
        "not_in_gallery": int((~judge.people.known).sum()), "embedder": judge.embedder.name,
        "metric": judge.embedder.metric, "fingerprint": judge.embedder.fingerprint, "guided": subject.guided,
        "without": list(subject.without), "inputs": list(subject.inputs),
        "seed": subject.seed, "samples": subject.samples, "checkpoints": subject.trained.digests,
        "sampler": {**settings, "evaluations": cascade.sample_settings(subject.trained.meta.config).evaluations},
    }  # fmt: skip


if __name__ == "__main__":
    cli.run(main)
