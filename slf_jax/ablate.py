"""The paper's ablations: `python -m slf_jax.ablate --config configs/ablations.py`.

Trains each system, sweeps it over guidance scales and scores it; and reads the same systems off one that was trained
with any subset of its inputs, by masking. Running the same command again goes on where it was. Writes report.md with
the paper's tables beside ours, results.json and figures into the run directory.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import ml_collections
import numpy as np

from slf_common import cli
from slf_common.errors import UserError
from slf_common.files import check_writable, local_path, write_atomically
from slf_jax import cascade, evaluate, figures
from slf_jax.evaluate import Subject
from slf_jax.evaluation import ablation_tables, metrics, paper, protocol
from slf_jax.evaluation.protocol import Judge, People
from slf_jax.sampling import Sampler, Scale, spell
from slf_jax.settings import RULES, check_config
from slf_jax.state import load
from slf_jax.train import train
from tfrecords.reader import Clips

SHOWN = 4  # people on the page of scales (Fig. 7)


@dataclasses.dataclass(frozen=True)
class Ablation:
    """What all systems share: the config, who judges, and where the results lie."""

    config: ml_collections.ConfigDict
    judge: Judge
    validation: Judge | None

    @property
    def settings(self) -> ml_collections.ConfigDict:
        return self.config.ablations

    @property
    def workdir(self) -> Path:
        return local_path(self.config.workdir)

    @property
    def scales(self) -> tuple[Scale, ...]:
        return tuple((scale, scale) for scale in self.settings.scales)


def ablate(config: ml_collections.ConfigDict) -> dict | None:
    """Trains and measures whatever is missing; returns what results.json holds, None if a signal ended it early.

    Raises `UserError` for what the user can mend.
    """
    if "ablations" not in config:
        raise UserError("this config has no `ablations`; see configs/ablations.py")
    check_config(config)
    ablation = _prepare(config)
    order = list(paper.SYSTEMS)  # a config sorts them by name
    names = sorted(config.ablations.systems, key=lambda name: order.index(name) if name in order else len(order))
    print(f"{len(names)} systems, {', '.join(config.ablations.modes)}: {len(ablation.judge.people)} people, "
          f"{len(ablation.scales)} scales")  # fmt: skip
    results: dict[str, dict] = {mode: {} for mode in config.ablations.modes}
    for mode in config.ablations.modes:
        subject = None
        for number, name in enumerate(names, 1):
            print(f"-- {mode} {number}/{len(names)}: {name}", flush=True)
            if subject is None or mode == "trained":  # the masked ones are one
                subject = _train(ablation, name, mode)
            if subject is None:
                return None
            results[mode][name] = _measured(ablation, name, mode, subject)
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
    embedder = evaluate.choose_embedder(settings.embedder, settings.metric, settings.detector, train_clips)
    folder = local_path(config.workdir) / "gallery"
    judge = Judge(protocol.choose(clips, settings.people, same_clip=settings.same_clip), embedder, folder)
    return Ablation(config, judge, evaluate.validation_judge(config.data.dir, settings.same_clip, embedder, folder))


def _run_config(ablation: Ablation, name: str, mode: str) -> ml_collections.ConfigDict:
    """How one system is trained; the masked ones share one run, trained with any subset of all inputs."""
    config = copy.deepcopy(ablation.config)
    with config.unlocked():
        del config.ablations
    if mode == "masked":
        config.workdir = str(ablation.workdir / "any_subset")
        config.train.steps = tuple(ablation.settings.any_subset_steps) or config.train.steps
        return config
    system = ablation.settings.systems[name]
    config.workdir = str(ablation.workdir / name.replace(" ", "_"))
    # The same networks for all, so that they differ in nothing but what they see, and compile once.
    config.model.inputs, config.data.inputs = tuple(config.data.inputs), tuple(system.inputs)
    config.train.constituent_drop = {}
    config.train.guide_drop = 0.0 if system.guide else 1.0
    return config


def _train(ablation: Ablation, name: str, mode: str) -> Subject | None:
    """The system, trained by now; None if a signal ended its training early."""
    run, settings = _run_config(ablation, name, mode), ablation.settings
    if not train(run):
        return None
    trained = load(run.workdir)
    sampler = Sampler(trained, chunk=settings.chunk)
    return Subject(trained, sampler, ablation.config.seed, settings.samples, guided=True)


def _measured(ablation: Ablation, name: str, mode: str, subject: Subject) -> dict:
    """One system's figures at all scales, from its file where they were measured before."""
    system, settings = ablation.settings.systems[name], ablation.settings
    without = tuple(part for part in subject.trained.system.inputs if part not in system.inputs)
    subject = dataclasses.replace(subject, guided=system.guide, without=without)
    made_from = {
        "checkpoints": subject.trained.digests,
        "without": list(without),
        "guided": system.guide,
        "scales": list(settings.scales),
        "samples": settings.samples,
        "seed": subject.seed,
        "sampler": subject.trained.meta.config.sample.to_dict(),
        "gallery": ablation.judge.gallery.name,
        "people": ablation.judge.people.ids,
    }
    path = ablation.workdir / "measured" / f"{mode}_{name.replace(' ', '_')}.json"
    made_from = json.loads(json.dumps(made_from))
    if path.exists():
        try:
            found = json.loads(path.read_text())
            same = found["made_from"] == made_from
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: damaged ({error!r}); remove it, and this system is measured again") from None
        if same:
            return found
    found = {"made_from": made_from, **_measure(ablation, subject, f"{mode} {name}")}
    write_atomically(path, json.dumps(found).encode())
    return found


def _measure(ablation: Ablation, subject: Subject, what: str) -> dict:
    """Sweeps and scores one system; with no conditions to be guided by, scale 0 is all there is."""
    judge, scales = ablation.judge, ablation.scales if subject.inputs else ((0.0, 0.0),)
    chosen, weighted = 0, None
    if ablation.validation and len(scales) > 1:
        chosen, weighted = evaluate.choose_scale(subject, scales, ablation.validation)
    images = subject.draw(judge.people, scales, what)
    scores = {spell(s): judge.score(each, f"{what}, scale {spell(s)}") for s, each in zip(scales, images, strict=True)}
    _page_of_scales(
        judge.people, scales, images, subject.guided, ablation.workdir / "scales" / f"{what.replace(' ', '_')}.png"
    )
    summaries = {scale: protocol.summary(each, judge.people) for scale, each in scores.items()}
    return {
        "inputs": list(subject.inputs),
        "scales": summaries,
        "chosen": spell(scales[chosen]),
        "validation_weighted_recall": weighted,
        "best_on_test": max(summaries, key=lambda scale: summaries[scale]["r@1"]["rate"]),
        "hits": {
            scale: {f"r@{k}": protocol.hits(each, k).tolist() for k in metrics.KS} for scale, each in scores.items()
        },
    }


def _page_of_scales(people: People, scales: Sequence[Scale], images: np.ndarray, guided: bool, path: Path) -> None:
    """A few people across all scales (Fig. 7): guide, each scale, real face."""
    real = people.probe["face"][:SHOWN]
    rows = [*images[:, :SHOWN, 0], real]
    columns = [*(f"scale {spell(scale)}" for scale in scales), "real"]
    if guided:
        guides = np.asarray(cascade.to_uint8(cascade.make_guide(cascade.to_float(jax.numpy.asarray(real)))))
        rows, columns = [figures.enlarge(guides, real.shape[1]), *rows], ["8x8 guide", *columns]
    figures.image_grid(np.stack(rows, 1), path, columns)


def _receipt(ablation: Ablation) -> dict:
    judge, config = ablation.judge, ablation.config
    return {
        "data": config.data.dir, "people": len(judge.people), "gallery": len(judge.gallery),
        "gallery_of_another_clip": int(judge.people.another.sum()), "embedder": judge.embedder.name,
        "metric": judge.embedder.metric, "seed": config.seed, "samples": config.ablations.samples,
        "sampler": config.sample.to_dict(), "steps": list(config.train.steps),
        "any_subset_steps": list(config.ablations.any_subset_steps) or list(config.train.steps),
        "chosen_by": "validation people" if ablation.validation else "the first scale given",
    }  # fmt: skip


def _write(ablation: Ablation, report: Mapping) -> None:
    for mode, systems in report["modes"].items():
        by_scale = {name: {f"scale {s}": row for s, row in each["scales"].items()} for name, each in systems.items()}
        figures.recall_by_scale(by_scale, ablation.workdir / f"figure_8_{mode}.png")
    write_atomically(ablation.workdir / "results.json", json.dumps(report, indent=2).encode())
    write_atomically(ablation.workdir / "report.md", ablation_tables.markdown(report).encode())


def main(argv: Sequence[str] | None = None) -> None:
    arguments = cli.parser(
        "slf_jax.ablate",
        "Trains, sweeps and scores the paper's eight systems; run the same command again to go on.",
        [
            "python -m slf_jax.ablate --config configs/ablations.py:demo",
            "python -m slf_jax.ablate --config configs/ablations.py --config.data.dir=data/vox2/records",
            "python -m slf_jax.ablate --config configs/ablations.py:demo --config.ablations.modes=masked",
        ],
    )
    _, config = cli.parse_with_config(arguments, argv, RULES)
    report = ablate(config)
    if report is None:
        print(f"{config.workdir}: stopped and saved; run the same command again to go on")
        return
    print(ablation_tables.short(report))
    workdir = local_path(config.workdir)
    print(f"{workdir / 'report.md'}\n{workdir / 'results.json'}")


if __name__ == "__main__":
    cli.run(main)
