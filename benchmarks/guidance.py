"""Kinds of guidance compared by recall and fidelity: `python benchmarks/guidance.py --workdir runs/demo`.

Samples the people of a split with each kind at each scale, from the same noise; prints a table, and writes it as JSON
with a plot, and the first person's faces. Kinds are compared at matched recall rather than at matched scale, since
scales mean different strengths: a kind is better where its curve of R@1 against PSNR lies further to the upper right.
Choose on validation people (the default), then give `--split test --kinds cfg,KIND --samples 3`: differences to cfg
are paired over people. `--against` adds other systems, each sampled as its config says.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from configs.demo import MEAN
from slf_common import cli
from slf_common.errors import UserError
from slf_common.files import write_atomically
from slf_jax.cascade.settings import SampleSettings, sample_settings
from slf_jax.cascade.stage import Stage
from slf_jax.cascade.system import AUTO
from slf_jax.evaluation import metrics, protocol, scorers
from slf_jax.evaluation.embedders import EMBEDDERS, choose_embedder
from slf_jax.evaluation.protocol import FaceScorer, Scores
from slf_jax.inference import arguments
from slf_jax.inference.people import person_number
from slf_jax.inference.sampler import Sampler
from slf_jax.inference.scales import format_scale, parse_scales
from slf_jax.inference.trained import Trained, load
from slf_jax.plots import grids
from slf_jax.plots.pyplot import import_pyplot, save_figure
from tfrecords.reader import Clips

LOW = (0.0, 4.0)  # of diffusion: the last two of the demo's four steps
BOTH = f"cfg2+{AUTO}"  # autoguidance added to cfg, whose scale stays 2


def known_kinds(stages: Iterable[Stage], guided_with: bool) -> dict[str, dict[str, Any]]:
    """The settings of each kind of guidance, by name; "default" is as the system's config says."""
    everywhere = {"guidance_interval": ((), ())}
    within = {"guidance_interval": tuple(MEAN if stage.is_flow else LOW for stage in stages)}
    kinds: dict[str, dict[str, Any]] = {
        "cfg": {"guidance": "cfg", **everywhere},
        "rescaled": {"guidance": "rescaled", "rescaled_phi": 0.7, **everywhere},
        "apg": {"guidance": "apg", "apg_r": 0.1, "apg_beta": -0.5, **everywhere},
        "cfgpp": {"guidance": "cfgpp", **everywhere},
        "interval": {"guidance": "cfg", **within},
        "rescaled-interval": {"guidance": "rescaled", "rescaled_phi": 1.0, **within},
        "apg-interval": {"guidance": "apg", "apg_r": 0.1, "apg_beta": -0.5, **within},
        "default": {},
    }
    if guided_with:
        for name in (AUTO, BOTH):
            kinds[name], kinds[f"{name}-interval"] = kinds["cfg"], kinds["interval"]
    return kinds


FILES = ("guidance.json", "guidance.png", "faces.png")
COLUMNS = {  # by key: heading, and factor
    "psnr": ("PSNR", 1), "ssim": ("SSIM", 1), "r@1": ("R@1 %", 100), "r@10": ("R@10 %", 100), "auc": ("AUC %", 100),
    "clipped": ("clipped %", 100), "kid": ("KID x 1000", 1000), "frechet": ("Frechet", 1),
}  # fmt: skip


class Case(NamedTuple):
    """A system, how to sample it, and with how many scales of groups of inputs."""

    trained: Trained
    settings: SampleSettings
    both: bool = False  # autoguidance on top of classifier-free guidance at scale 2


def measure(
    scorer: FaceScorer, cases: Mapping[str, Case], args: Any
) -> tuple[dict[str, dict[str, Scores]], dict[str, np.ndarray]]:
    """The scores of all people by case and scale, and the first person's faces [S, 128, 128, 3] by case.

    Each case is one program for all scales.
    """
    people, found, faces = scorer.people, {}, {}
    numbers = np.array([person_number(clip_id) for clip_id in people.ids])
    for name, case in tqdm(cases.items(), unit="kind"):
        sampler = Sampler(case.trained, settings=case.settings, chunk=args.chunk, memory=args.memory)
        inputs = case.trained.system.without(args.without).inputs
        images = sampler(
            people.probe, numbers, [(2.0, scale) for scale, _ in args.scales] if case.both else args.scales, args.seed,
            samples=args.samples, progress=name, use_thumbnail=not args.no_thumbnail, without=args.without,
            groups=(inputs, (AUTO,)) if case.both else (),
        )  # fmt: skip
        found[name] = {format_scale(scale): scorer.score(each) for scale, each in zip(args.scales, images, strict=True)}
        faces[name] = images[:, 0, 0]
    return found, faces


def choose_cases(trained: Trained, args: Any) -> dict[str, Case]:
    """The kinds of guidance of `--kinds`, with cfg, and the other systems of `--against`. Raises `UserError`."""
    settings = sample_settings(trained.meta.config)
    known = known_kinds(trained.system.stages.values(), bool(args.guide_with))
    names = dict.fromkeys(("cfg", *(arguments.parse_names(args.kinds, "--kinds") or known)))
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"--kinds {args.kinds}: no kind {unknown[0]!r}; there are: {', '.join(known)}")
    cases = {}
    for name in names:
        system = trained if AUTO in name else dataclasses.replace(trained, weak=None)
        cases[name] = Case(system, dataclasses.replace(settings, **known[name]), name.startswith(BOTH))
    for source in arguments.parse_names(args.against, "--against"):
        other = load(source)
        cases[Path(source).name] = Case(other, sample_settings(other.meta.config))
    return cases


def row(scores: Scores, people: protocol.EvaluationSet) -> dict[str, float]:
    """The figures of one kind at one scale."""
    found = protocol.summary(scores, people)
    rates = {name: found[name]["rate"] for name in ("r@1", "r@10")}
    rates["auc"] = found["identity"]["verification"]["auc"]["rate"]
    means = {name: found[name]["mean"] for name in ("psnr", "ssim", "clipped")}
    distances = found["distribution"] or {"kid": float("nan"), "frechet": float("nan")}
    return {**rates, **means, "kid": distances["kid"], "frechet": distances["frechet"]}


def gain_at_equal_recall(ours: Sequence[Mapping], theirs: Sequence[Mapping]) -> float | None:
    """Most PSNR (dB) that the first kind gains over the second one at a recall that both reach.

    At each R@1 of the second kind, against the best PSNR of the first at that R@1 or a higher one.
    """
    gains = []
    for point in theirs:
        reached = [each["psnr"] for each in ours if each["r@1"] >= point["r@1"]]
        rivals = [each["psnr"] for each in theirs if each["r@1"] >= point["r@1"]]
        if reached:
            gains.append(max(reached) - max(rivals))
    return max(gains, default=None)


def against_cfg(
    scores: Mapping[str, Mapping[str, Scores]], rows: Mapping[str, Mapping[str, Mapping]], at: str
) -> dict[str, dict]:
    """Each kind at one scale against cfg there and itself at scale 1, and both kinds at their best R@1."""
    found = {}
    best = {name: max(scales, key=lambda scale: scales[scale]["r@1"]) for name, scales in rows.items()}
    for name, own in scores.items():
        pairs = [(at, name, "1")] if "1" in own else []
        pairs += [(at, "cfg", at), (best[name], "cfg", best["cfg"])] if name != "cfg" else []
        differences = {}
        for scale, other, other_scale in pairs:
            compared = protocol.compare(own[scale], scores[other][other_scale])
            differences[f"{name} at {scale}, {other} at {other_scale}"] = {
                key: compared[key] for key in ("psnr", "ssim", "r@1", "r@10")
            }
        gain = gain_at_equal_recall(list(rows[name].values()), list(rows["cfg"].values()))
        found[name] = {"gain_at_equal_recall": gain, "differences": differences}
    return found


def report(rows: Mapping[str, Mapping[str, Mapping]], compared: Mapping[str, Any]) -> str:
    """The table of all kinds, and the differences to cfg."""
    lines = [f"{'kind':20}{'scale':>6}" + "".join(f"{text:>11}" for text, _ in COLUMNS.values())]
    for name, scales in rows.items():
        for scale, found in scales.items():
            values = [found[key] * factor for key, (_, factor) in COLUMNS.items()]
            lines.append(f"{name:20}{scale:>6}" + "".join(f"{value:11.2f}" for value in values))
    for name, each in compared.items():
        lines.append(f"{name}: at equal R@1 up to {each['gain_at_equal_recall'] or 0:+.2f} dB over cfg")
        for what, found in each["differences"].items():
            psnr, recall = _difference(found["psnr"], 1, 2), _difference(found["r@1"], 100, 1)
            lines.append(f"  {what}: PSNR {psnr} dB, R@1 {recall} points")
    return "\n".join(lines)


def _difference(found: Mapping[str, float] | None, factor: float, digits: int) -> str:
    """A paired difference with its interval; None: the two do not differ."""
    if found is None:
        return "+0"
    value, low, high = (f"{factor * found[key]:+.{digits}f}" for key in ("difference", "low", "high"))
    return f"{value} [{low}, {high}]"


def plot(rows: Mapping[str, Mapping[str, Mapping]], title: str, path: Path) -> None:
    """R@1 and PSNR by scale, and R@1 against PSNR."""
    plt = import_pyplot()
    figure, (recall, psnr, front) = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
    for name, scales in rows.items():
        x = [float(scale) for scale in scales]
        rates, decibels = ([each[key] for each in scales.values()] for key in ("r@1", "psnr"))
        rates = [100 * rate for rate in rates]
        for axis, values in ((recall, (x, rates)), (psnr, (x, decibels)), (front, (decibels, rates))):
            axis.plot(*values, marker="o", ms=3.5, lw=2 if name == "cfg" else 1.2, label=name)
    for axis, labels in zip(
        (recall, psnr, front),
        (("guidance scale", "R@1 (%)"), ("guidance scale", "PSNR (dB)"), ("PSNR (dB)", "R@1 (%)")),
        strict=True,
    ):
        axis.set(xlabel=labels[0], ylabel=labels[1])
        axis.grid(alpha=0.3)
    figure.legend(*front.get_legend_handles_labels(), fontsize=8, loc="outside right center")
    figure.suptitle(title)
    save_figure(figure, path)


def main() -> None:
    parser = cli.parser("benchmarks.guidance", __doc__, ["python benchmarks/guidance.py --workdir runs/demo"])
    arguments.add_arguments(parser)
    parser.set_defaults(split="validation")
    parser.add_argument("--scales", default="0,1,2,3,4,6,8,10", help="guidance scales (default: 0,1,2,3,4,6,8,10)")
    parser.add_argument("--no-thumbnail", action="store_true", help="start from noise, without a thumbnail")
    parser.add_argument(
        "--embedder", default="auto", choices=("auto", *EMBEDDERS), help="what compares faces (default: auto)"
    )
    parser.add_argument("--same-clip", action="store_true", help="use the thumbnail's own clip in the gallery")
    parser.add_argument("--kinds", default="", help="comma-separated kinds (default: all)")
    parser.add_argument(
        "--against", default="", metavar="RUNS", help="other systems of the same data, each sampled as its config says"
    )
    parser.add_argument("--at", default="8", help="scale at which kinds are compared, one of --scales (default: 8)")
    parser.add_argument("--people", type=int, default=0, help="number of speakers (default: all)")
    args, trained = arguments.parse(parser, None, "guidance", *FILES)
    args.scales, args.without = parse_scales(args.scales), arguments.parse_names(args.without)
    at = format_scale(parse_scales(args.at, "--at")[0])
    if at not in map(format_scale, args.scales):
        raise UserError(f"--at {args.at}: must be one of --scales")
    cases = choose_cases(trained, args)
    clips = arguments.open_clips(trained, args, args.without)
    people = protocol.choose(clips, args.people, same_clip=args.same_clip)
    embedder = choose_embedder(args.embedder, "", "", Clips(clips.directory, "train"), people.faces)
    scorer = FaceScorer(people, embedder, scorers.gallery_folder(args.workdir, args.out) / args.split)
    scores, faces = measure(scorer, cases, args)
    rows = {name: {scale: row(each, people) for scale, each in scales.items()} for name, scales in scores.items()}
    compared = against_cfg(scores, rows, at)
    title = f"{len(people)} people of the {args.split} split, {args.samples} sample(s) of each, seed {args.seed}"
    real = 100 * float(metrics.clipped(people.probe["face"]).mean())
    print(f"{title}; clipped in real faces: {real:.2f} %", report(rows, compared), sep="\n")
    about = {name: case.settings.to_json() for name, case in cases.items()}
    result = {"title": title, "clipped_real": real, "rows": rows, "against_cfg": compared, "settings": about}
    write_atomically(args.out / "guidance.json", json.dumps(result, indent=2).encode())
    plot(rows, title, args.out / "guidance.png")
    columns = np.stack(list(faces.values()), 1)
    names = [f"scale {format_scale(scale)}" for scale in args.scales]
    grids.image_grid(dict(zip(names, columns, strict=True)), args.out / "faces.png", list(faces))
    print(*(args.out / name for name in FILES), sep="\n")


if __name__ == "__main__":
    cli.run(main)
