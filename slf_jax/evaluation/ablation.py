"""The paper's ablations: systems are trained one by one, or emulated by masking inputs of one, and all are scored."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import ml_collections

from slf_common.errors import UserError
from slf_common.files import check_writable, local_path, write_atomically
from slf_jax.cascade.images import downscale
from slf_jax.cascade.sizes import STAGES
from slf_jax.evaluation import ablation_tables, metrics, paper, protocol, scorers
from slf_jax.evaluation.embedders import choose_embedder
from slf_jax.evaluation.protocol import FaceScorer
from slf_jax.evaluation.settings import check_config
from slf_jax.evaluation.systems import EvaluatedSystem, choose_scale
from slf_jax.inference.sampler import Sampler
from slf_jax.inference.scales import Scales
from slf_jax.inference.trained import load
from slf_jax.plots import curves, grids
from slf_jax.training.loop import train
from tfrecords.reader import Clips

SHOWN = 4  # people in the picture of scales (Fig. 7)


@dataclasses.dataclass(frozen=True)
class Ablation:
    """What all systems share: the config, and the scorers of the test and of the validation people."""

    config: ml_collections.ConfigDict
    scorer: FaceScorer
    validation: FaceScorer | None

    @property
    def settings(self) -> ml_collections.ConfigDict:
        return self.config.ablations

    @property
    def workdir(self) -> Path:
        return local_path(self.config.workdir)

    @property
    def scales(self) -> Scales:
        return Scales([(scale, scale) for scale in self.settings.scales])


def ablate(config: ml_collections.ConfigDict) -> dict | None:
    """Trains and measures the systems that are still missing.

    Returns the content of results.json, or None if a signal ended it early. Raises `UserError`.
    """
    check_config(config)
    ablation = _prepare(config)
    order = list(paper.SYSTEMS)  # a ConfigDict sorts them by name
    names = sorted(config.ablations.systems, key=lambda name: order.index(name) if name in order else len(order))
    print(f"{len(names)} systems, {', '.join(config.ablations.modes)}: {len(ablation.scorer.people)} people, "
          f"{len(ablation.scales)} scales")  # fmt: skip
    results: dict[str, dict] = {mode: {} for mode in config.ablations.modes}
    for mode in config.ablations.modes:
        subject = None
        for number, name in enumerate(names, 1):
            print(f"-- {mode} {number}/{len(names)}: {name}", flush=True)
            if subject is None or mode == "trained":  # all masked systems are the same trained one
                subject = _train(ablation, name, mode)
            if subject is None:
                return None
            results[mode][name] = _load_or_measure(ablation, name, mode, subject)
    report = {**_receipt(ablation), "modes": results}
    _write(ablation, report)
    return report


def _prepare(config: ml_collections.ConfigDict) -> Ablation:
    settings = config.ablations
    check_writable(
        local_path(config.workdir), "report.md", "results.json", "gallery/", "measured/", "scales/",
        flag="--config.workdir",
    )  # fmt: skip
    clips, train_clips = Clips(config.data.dir, "test"), Clips(config.data.dir, "train")
    people = protocol.choose(clips, settings.people, same_clip=settings.same_clip)
    embedder = choose_embedder(settings.embedder, settings.metric, settings.detector, train_clips, people.faces)
    folder = local_path(config.workdir) / "gallery"
    scorer = FaceScorer(people, embedder, folder)
    return Ablation(config, scorer, scorers.validation_scorer(config.data.dir, settings.same_clip, embedder, folder))


def _run_config(ablation: Ablation, name: str, mode: str) -> ml_collections.ConfigDict:
    """The config that trains a system; the masked ones share one run, trained with any subset of all inputs."""
    config = copy.deepcopy(ablation.config)
    with config.unlocked():
        del config.ablations
    if mode == "masked":
        config.workdir = str(ablation.workdir / "any_subset")
        for stage, steps in ablation.settings.any_subset_steps.items():
            config.train[stage].steps = steps or config.train[stage].steps
        return config
    system = ablation.settings.systems[name]
    config.workdir = str(ablation.workdir / name.replace(" ", "_"))
    # The same networks for all, so that systems differ only in the inputs they use, and compile once.
    config.model.supported_inputs, config.data.inputs = tuple(config.data.inputs), tuple(system.inputs)
    config.train.constituent_drop = {}
    config.train.thumbnail_drop = 0.0 if system.thumbnail else 1.0
    return config


def _train(ablation: Ablation, name: str, mode: str) -> EvaluatedSystem | None:
    """Trains a system; None if a signal ended it early."""
    run, settings = _run_config(ablation, name, mode), ablation.settings
    if not train(run):
        return None
    trained = load(run.workdir)
    sampler = Sampler(trained, chunk=settings.chunk)
    return EvaluatedSystem(trained, sampler, ablation.config.seed, settings.samples, use_thumbnail=True)


def _load_or_measure(ablation: Ablation, name: str, mode: str, subject: EvaluatedSystem) -> dict:
    """One system's results at all scales, read from their file if they were measured before."""
    system, settings = ablation.settings.systems[name], ablation.settings
    without = tuple(part for part in subject.trained.system.inputs if part not in system.inputs)
    subject = dataclasses.replace(subject, use_thumbnail=system.thumbnail, without=without)
    made_from = {
        "checkpoints": subject.trained.digests,
        "without": list(without),
        "thumbnail": system.thumbnail,
        "scales": list(settings.scales),
        "samples": settings.samples,
        "seed": subject.seed,
        "sampler": subject.trained.meta.config.sample.to_dict(),
        "gallery": ablation.scorer.gallery.name,
        "people": ablation.scorer.people.ids,
    }
    path = ablation.workdir / "measured" / f"{mode}_{name.replace(' ', '_')}.json"
    made_from = json.loads(json.dumps(made_from))
    if path.exists():
        try:
            found = json.loads(path.read_text())
            same = found["made_from"] == made_from
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: damaged ({error!r}); remove it to measure this system again") from None
        if same:
            return found
    found = {"made_from": made_from, **_measure(ablation, subject, f"{mode} {name}")}
    write_atomically(path, json.dumps(found).encode())
    return found


def _measure(ablation: Ablation, subject: EvaluatedSystem, what: str) -> dict:
    """Sweeps and scores one system, only at scale 0 if it has no inputs; `what` names it in progress bars and files."""
    scorer, scales = ablation.scorer, ablation.scales if subject.inputs else Scales([(0.0, 0.0)])
    chosen, weighted = 0, None
    if ablation.validation and len(scales) > 1:
        chosen, weighted = choose_scale(subject, scales, ablation.validation)
    images = subject.draw(scorer.people, scales, what)
    scores = {
        scales.key(point): scorer.score(each, f"{what}, {scales.label(point)}")
        for point, each in zip(scales.points, images, strict=True)
    }
    real = scorer.people.probe["face"][:SHOWN]
    columns = {"8x8 thumbnail": downscale(real)} if subject.use_thumbnail else {}
    columns |= {scales.label(point): faces[:SHOWN, 0] for point, faces in zip(scales.points, images, strict=True)}
    path = ablation.workdir / "scales" / f"{what.replace(' ', '_')}.png"
    grids.image_grid({**columns, "real": real}, path)
    summaries = {scale: protocol.summary(each, scorer.people) for scale, each in scores.items()}
    return {
        "inputs": list(subject.inputs),
        "scales": summaries,
        "chosen": scales.key(scales.points[chosen]),
        "validation_weighted_recall": weighted,
        "best_on_test": max(summaries, key=lambda scale: summaries[scale]["r@1"]["rate"]),
        "hits": {
            scale: {f"r@{k}": protocol.hits(each, k).tolist() for k in metrics.KS} for scale, each in scores.items()
        },
    }


def _receipt(ablation: Ablation) -> dict:
    scorer, config = ablation.scorer, ablation.config
    steps = [config.train[name].steps for name in STAGES]
    any_subset = [config.ablations.any_subset_steps[name] or config.train[name].steps for name in STAGES]
    return {
        "data": config.data.dir, "people": len(scorer.people), "gallery": len(scorer.gallery),
        "gallery_of_another_clip": int(scorer.people.another.sum()), "embedder": scorer.embedder.name,
        "metric": scorer.embedder.metric, "seed": config.seed, "samples": config.ablations.samples,
        "sampler": config.sample.to_dict(), "steps": steps,
        "any_subset_steps": any_subset,
        "chosen_by": "validation people" if ablation.validation else "the first scale given",
    }  # fmt: skip


def _write(ablation: Ablation, report: Mapping) -> None:
    for mode, systems in report["modes"].items():
        by_scale = {name: {f"scale {s}": row for s, row in each["scales"].items()} for name, each in systems.items()}
        curves.recall_by_scale(by_scale, ablation.workdir / f"figure_8_{mode}.png")
    write_atomically(ablation.workdir / "results.json", json.dumps(report, indent=2).encode())
    write_atomically(ablation.workdir / "report.md", ablation_tables.markdown(report).encode())
