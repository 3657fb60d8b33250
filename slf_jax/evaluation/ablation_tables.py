"""An ablation's results.json for reading: the paper's Tables 5-8 with its figures beside ours, and S of each input."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from slf_jax.evaluation import metrics, paper
from slf_jax.evaluation.metrics import spell_rate

KINDS = ("gender", "ethnicity", "age_group")
RATES = tuple(f"r@{k}" for k in metrics.KS)
HEAD = "| system | | scale | R@1 | R@3 | R@5 | R@10 | gender | ethnicity | age group | RMSE age | PSNR | SSIM |"
MODES = {"trained": "trained on these inputs", "masked": "one any-subset system, the others masked"}
SWEPT = ("full input", "speaker embedding only")  # of Table 8


def markdown(report: Mapping) -> str:
    """The whole report."""
    modes = report["modes"]
    parts = ["# Ablations", _how(report), "## The eight systems (the paper's Tables 5-7)", _systems(modes)]
    parts += ["## Significance of each input (Eq. 3-4)", _significance(modes)]
    parts += ["## Across guidance scales (the paper's Table 8)", _scales(modes)]
    if len(modes) > 1:
        parts += ["## A system each, or one system masked?", _agreement(modes)]
    pictures = [f"`figure_8_{mode}.png`: R@1 and R@3 against scale (Fig. 8)" for mode in modes]
    parts += ["## Pictures", "; ".join([*pictures, "`scales/`: people across scales (Fig. 7)"]) + "."]
    return "\n\n".join(parts) + "\n"


def short(report: Mapping) -> str:
    """R@1 and R@10 of every system at its chosen scale, for the terminal."""
    lines = []
    for mode, systems in report["modes"].items():
        lines.append(f"{MODES[mode]:46}{'scale':>7}{'R@1':>7}{'R@10':>7}{'PSNR':>7}")
        for name, found in systems.items():
            row = found["scales"][found["chosen"]]
            rates = "".join(f"{100 * row[rate]['rate']:7.1f}" for rate in ("r@1", "r@10"))
            lines.append(f"  {name:44}{found['chosen']:>7}{rates}{row['psnr']['mean']:7.2f}")
    return "\n".join(lines)


def _how(report: Mapping) -> str:
    other = report["gallery_of_another_clip"]
    sampler = report["sampler"]
    return (
        f"{report['people']} people of `{report['data']}`, gallery of {report['gallery']} real faces (another clip "
        f"than the guide's for {other}), compared by `{report['embedder']}` ({report['metric']}); "
        f"{report['samples']} sample(s) of each, seed {report['seed']}, {sampler['sampler']} with {sampler['steps']} "
        f"steps a stage; training steps {report['steps']}. Scales were chosen by {report['chosen_by']}; the paper "
        "chose on the test people. Rates in percent, of R@k with 95 % intervals; a face in which none is found is a "
        "miss. The paper's rows are of 118 people of VoxCeleb2, compared by VGG-Face: they stand here for their "
        "pattern, not to be matched."
    )


def _row(label: str, which: str, scale: str, row: Mapping) -> str:
    rates = [
        f"{spell_rate(row[r]['rate'])} [{100 * row[r]['low']:.1f}, {100 * row[r]['high']:.1f}]" for r in RATES
    ] + ["-" if row[kind] is None else spell_rate(row[kind]["rate"]) for kind in KINDS]  # fmt: skip
    age = "-" if row["age_rmse"] is None else f"{row['age_rmse']:.2f}"
    cells = [label, which, scale, *rates, age, f"{row['psnr']['mean']:.2f}", f"{row['ssim']['mean']:.2f}"]
    return "| " + " | ".join(cells) + " |"


def _systems(modes: Mapping) -> str:
    lines = [HEAD, "|" + "---|" * 13]
    for name, theirs in paper.SYSTEMS.items():
        for mode, systems in modes.items():
            if name in systems:
                found = systems[name]
                lines.append(_row(f"**{name}**", mode, found["chosen"], found["scales"][found["chosen"]]))
        scale, *figures = theirs
        lines.append(
            f"| {name} | paper | {'-' if scale is None else scale} | " + " | ".join(f"{x:.2f}" for x in figures) + " |"
        )
    size = next(iter(next(iter(modes.values())).values()))["scales"]
    people = next(iter(size.values()))["r@1"]["n"]
    random = " | ".join(f"{100 * metrics.random_recall(k, people):.2f}" for k in metrics.KS)
    return "\n".join([*lines, f"| random selection | of {people} | - | {random} | | | | | | |"])


def significances(systems: Mapping) -> dict[str, float]:
    """S of each input whose systems are there, each at its chosen scale."""
    recalls = {
        name: {k: found["scales"][found["chosen"]][f"r@{k}"]["rate"] for k in metrics.KS}
        for name, found in systems.items()
    }
    return {
        part: metrics.significance(recalls["full input"], recalls[without])
        for part, (without, _) in paper.SIGNIFICANCE.items()
        if {"full input", without} <= set(recalls)
    }


def _significance(modes: Mapping) -> str:
    lines = ["| input | " + " | ".join(f"{mode}: S | band" for mode in modes) + " | paper's S | band |"]
    lines.append("|" + "---|" * (3 + 2 * len(modes)))
    for part, (without, _) in paper.SIGNIFICANCE.items():
        theirs = metrics.significance(paper.recalls("full input"), paper.recalls(without))
        cells = []
        for systems in modes.values():
            s = significances(systems).get(part, float("nan"))
            cells += ["-" if np.isnan(s) else f"{s:.2f}", metrics.band(s)]
        lines.append(f"| {part} | {' | '.join(cells)} | {theirs:.2f} | {metrics.band(theirs)} |")
    return "\n".join(lines)


def _scales(modes: Mapping) -> str:
    lines = [HEAD, "|" + "---|" * 13]
    for mode, systems in modes.items():
        for name in SWEPT:
            for scale, row in systems.get(name, {"scales": {}})["scales"].items():
                lines.append(_row(name, mode, scale, row))
    return "\n".join(lines)


def _agreement(modes: Mapping) -> str:
    a, b = modes["trained"], modes["masked"]
    lines = ["| system | R@1 trained | R@1 masked | difference | 95 % interval |", "|---|---|---|---|---|"]
    for name in a:
        ours, other = (np.array(each[name]["hits"]["r@1"]) for each in (a, b))
        low, high = metrics.bootstrap(ours - other)
        lines.append(
            f"| {name} | {spell_rate(ours.mean())} | {spell_rate(other.mean())} | {100 * (ours - other).mean():+.1f} | "
            f"[{100 * low:+.1f}, {100 * high:+.1f}] |"
        )
    return "\n".join(lines) + "\n\nDifferences in points over the same people, paired bootstrap; each at its own scale."
