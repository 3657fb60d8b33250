"""Evaluates a trained system: `python -m slf_jax.evaluate --workdir runs/demo --split test`.

Each person's generated face is a query against a gallery of real faces. Writes evaluation/ with results.json,
report.md and figures: recall with intervals beside controls, attributes, fidelity, what each input contributes, and
results by group.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from slf_common import cli
from slf_common.errors import UserError
from slf_jax.evaluation import embedders, field, protocol, report, scorers, tables
from slf_jax.evaluation.features import NoNetwork
from slf_jax.evaluation.protocol import FaceScorer
from slf_jax.evaluation.systems import EvaluatedSystem, evaluate_system
from slf_jax.inference import arguments, groups
from slf_jax.inference.sampler import Sampler
from slf_jax.inference.trained import Trained
from tfrecords.reader import Absent, Clips


def evaluate(trained: Trained, args: argparse.Namespace) -> str:
    """Samples and scores the people of a split and writes the report to `args.out`; returns a summary as text."""
    scales, without = groups.parse(args.scales, trained, arguments.parse_names(args.without), not args.no_thumbnail)
    scales = groups.with_lowres_aug(scales, args.lowres_aug, trained)
    if args.protocol:
        field.apply(args)
    if args.people < 0:
        raise UserError(f"--people {args.people}: give at least 1, or leave it out for all")
    clips = arguments.open_clips(trained, args, without)
    train = _optional(clips.directory, "train") or _optional(trained.meta.config.data.dir, "train")
    others = Clips(args.gallery, args.split) if args.gallery else None
    people = protocol.choose(clips, args.people, same_clip=args.same_clip, gallery=others)
    try:
        embedder = embedders.choose_embedder(args.embedder, args.metric, args.detector, train, people.faces)
    except NoNetwork as error:
        if not args.protocol:
            raise
        reason = f"compares faces by {args.embedder}, which is not available here ({error})"
        raise UserError(f"--protocol {args.protocol} {reason}") from None
    folder = scorers.gallery_folder(args.workdir, args.out)
    scorer = FaceScorer(people, embedder, folder)
    several = len(scales) > 1 and args.split != "validation"
    # A dataset without validation people uses those held out in training to choose a scale.
    held_out = clips.directory if _optional(clips.directory, "validation") else trained.meta.config.data.dir
    validation = scorers.validation_scorer(held_out, args.same_clip, embedder, folder) if several else None
    sampler = Sampler(trained, chunk=args.chunk, memory=args.memory)
    subject = EvaluatedSystem(trained, sampler, args.seed, args.samples, not args.no_thumbnail, without)
    found, scores, images = evaluate_system(subject, scales, scorer, validation, train)
    results = {"subject": Path(args.workdir).name, **_receipt(args, subject, scorer, clips), **found}
    report.write(results, scores, images, scorer, subject.use_thumbnail, args.out)
    return f"{tables.short(results)}\n{args.out / 'report.md'}\n{args.out / 'results.json'}"


def _optional(directory: str | Path, split: str) -> Clips | None:
    """The split; None if there is no such dataset or split."""
    try:
        return Clips(directory, split)
    except Absent:
        return None


def _receipt(args: argparse.Namespace, subject: EvaluatedSystem, scorer: FaceScorer, clips: Clips) -> dict:
    """The data, checkpoints and settings that the results were made from."""
    people, embedder = scorer.people, scorer.embedder
    return {
        "data": str(clips.directory), "split": args.split, "people": len(people), "gallery": len(scorer.gallery),
        "gallery_of_another_clip": int(people.another.sum()), "not_in_gallery": int((~people.known).sum()),
        "embedder": embedder.name, "metric": embedder.metric, "fingerprint": embedder.fingerprint,
        "thumbnail": subject.use_thumbnail, "without": list(subject.without), "inputs": list(subject.inputs),
        "seed": subject.seed, "samples": subject.samples, "checkpoints": subject.trained.digests,
        "guided_with": subject.trained.weak.digests if subject.trained.weak else None,
        "sampler": subject.sampler.settings.to_json(), "protocol": args.protocol,
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.parser(
        "slf_jax.evaluate",
        "Samples every person of a split and measures recall, attributes and fidelity against real faces.",
        [
            "python -m slf_jax.evaluate --workdir runs/demo --scales 0,1,2,4",
            "python -m slf_jax.evaluate --workdir runs/vox2 --data data/slf118 --scales 0,2,4,8 --embedder arcface",
            "python -m slf_jax.evaluate --workdir runs/demo --scales voice=0:2:4,attributes=0:1:2",
            "python -m slf_jax.evaluate --workdir runs/demo --guide-with runs/demo@600:300 --scales all=2,auto=1:2",
            "python -m slf_jax.evaluate --workdir runs/vox2 --protocol slf                    # as in the paper",
            "python -m slf_jax.evaluate --workdir runs/demo --no-thumbnail --samples 4        # generation from voice",
        ],
    )
    arguments.add_arguments(parser)
    parser.add_argument(
        "--scales",
        default="1",
        help="guidance scales, of which one is chosen on validation people; voice=0:2:4,attributes=0:1 gives each of "
        "two groups of inputs its own (default: 1)",
    )
    arguments.add_lowres_aug(parser)
    parser.add_argument("--people", type=int, default=0, help="number of speakers (default: all)")
    parser.add_argument("--no-thumbnail", action="store_true", help="start from noise, without a thumbnail")
    parser.add_argument(
        "--embedder", default="auto", choices=("auto", *embedders.EMBEDDERS),
        help="network that compares faces; auto: dlib, else vgg-face, else eigenfaces (default: auto)",
    )  # fmt: skip
    parser.add_argument(
        "--metric",
        default="",
        choices=("", "l2", "cosine"),
        help="distance between embeddings (default: l2 for dlib and vgg-face, cosine for the others)",
    )
    parser.add_argument(
        "--detector", default="",
        help="face detector: of DeepFace (default: opencv, as in the paper), for its networks; dlib uses its own; "
        "skip: the whole picture is the face",
    )  # fmt: skip
    parser.add_argument(
        "--same-clip", action="store_true",
        help="use the thumbnail's own clip in the gallery, as in the paper (default: another clip, if there is one)",
    )  # fmt: skip
    parser.add_argument(
        "--gallery", default="", metavar="DIR",
        help="dataset folder whose speakers in that split form the gallery (default: the people themselves)",
    )  # fmt: skip
    parser.add_argument(
        "--protocol", default="", choices=("", *field.PROTOCOLS),
        help="compare faces and report as this paper does: SLF, SF2F (hq-voxceleb) or Vox2Face (default: our own)",
    )  # fmt: skip
    args, trained = arguments.parse(parser, argv, "evaluation", *report.FILES)
    print(evaluate(trained, args))


if __name__ == "__main__":
    cli.run(main)
