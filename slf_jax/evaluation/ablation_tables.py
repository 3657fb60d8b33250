"""Formats an ablation's results: report.md with the paper's tables and figures beside ours, and tests of its claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from slf_jax.evaluation import metrics, paper
from slf_jax.evaluation.metrics import format_rate
from slf_jax.evaluation.tables import ATTRIBUTES, COLUMNS, FIDELITY, RECALL, begin, cells, p_value, points

MODES = {"trained": "a system trained on these inputs alone", "masked": "one any-subset system, other inputs masked"}
SWEPT = ("full input", "speaker embedding only")  # the systems of Table 8
FULL, THUMBNAIL_ONLY, NO_THUMBNAIL = "full input", "thumbnail only", "no thumbnail"
NO_AUDIO, NO_ATTRIBUTES, NO_SPEAKER = "no audio", "no additional attributes", "no speaker embedding"


def markdown(report: Mapping) -> str:
    """The whole report."""
    modes = report["modes"]
    parts = ["# Ablations", _how(report)]
    parts += ["## Systems and their inputs", _inputs(modes)]
    parts += ["## Recall (the paper's Table 5)", _systems(modes, RECALL)]
    parts += ["## Attributes (Table 6)", _systems(modes, ATTRIBUTES)]
    parts += ["## Fidelity (Table 7)", _systems(modes, FIDELITY)]
    parts += ["## What each input contributes (Eq. 3-4)", _significance(modes)]
    parts += ["## Across guidance scales (Table 8)", _scales(modes)]
    parts += ["## The paper's claims, tested on the same people", _claims(modes)]
    if len(modes) > 1:
        parts += ["## Separately trained systems against one masked system", _agreement(modes)]
    pictures = [f"`figure_8_{mode}.png`: R@1 and R@3 against scale (Fig. 8)" for mode in modes]
    parts += ["## Figures", "; ".join([*pictures, "`scales/`: people across scales (Fig. 7)"]) + "."]
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
    other, sampler = report["gallery_of_another_clip"], report["sampler"]
    return (
        f"{report['people']} people of `{report['data']}`, gallery of {report['gallery']} real faces (from a clip "
        f"other than the thumbnail's for {other}), compared by `{report['embedder']}` ({report['metric']}); "
        f"{report['samples']} sample(s) of each, seed {report['seed']}, {sampler['sampler']} with {sampler['steps']} "
        f"steps per stage; training steps {report['steps']}, of the masked system {report['any_subset_steps']}. "
        f"Scales were chosen by {report['chosen_by']}; the paper chose on the test people. Rates in percent, R@k with "
        "95 % intervals; an image in which no face is found is a miss. The paper's rows are of 118 people of "
        "VoxCeleb2, compared by VGG-Face: compare the pattern, not the numbers."
    )


def _inputs(modes: Mapping) -> str:
    systems = next(iter(modes.values()))
    parts = systems[FULL]["inputs"] if FULL in systems else sorted({p for s in systems.values() for p in s["inputs"]})
    lines = begin(("system", "8x8 thumbnail", *parts))
    for name, found in systems.items():
        used = [found["made_from"]["thumbnail"], *(part in found["inputs"] for part in parts)]
        lines.append(f"| {name} | " + " | ".join("x" if yes else "" for yes in used) + " |")
    return "\n".join([*lines, "", *(f"- {mode}: {text}" for mode, text in MODES.items() if mode in modes)])


def _systems(modes: Mapping, columns: Sequence[str]) -> str:
    """Each of the paper's systems at its chosen scale: our results, then the paper's."""
    lines = begin(("system", "", "scale", *columns))
    for name, (scale, *figures) in paper.SYSTEMS.items():
        for mode, systems in modes.items():
            if name in systems:
                found = systems[name]
                chosen = found["chosen"] if found["inputs"] else "-"
                texts = cells(found["scales"][found["chosen"]], columns)
                lines.append("| " + " | ".join([f"**{name}**", mode, chosen, *texts]) + " |")
        published = dict(zip(COLUMNS, figures, strict=True))
        texts = [f"{published[column]:.2f}" for column in columns]
        lines.append("| " + " | ".join([name, "paper", str(scale or "-"), *texts]) + " |")
    if columns == RECALL:
        gallery = _people(modes)
        rates = " | ".join(f"{100 * metrics.random_recall(k, gallery):.2f}" for k in metrics.KS)
        lines.append(f"| random selection | of {gallery} | - | {rates} |")
        rates = " | ".join(f"{rate:.2f}" for rate in paper.RANDOM.values())
        lines.append(f"| random selection | paper, of {paper.PEOPLE} | - | {rates} |")
    return "\n".join(lines)


def _people(modes: Mapping) -> int:
    first = next(iter(next(iter(modes.values())).values()))
    return next(iter(first["scales"].values()))["r@1"]["n"]


def _recalls(found: Mapping) -> dict[int, float]:
    return {k: found["scales"][found["chosen"]][f"r@{k}"]["rate"] for k in metrics.KS}


def _significance(modes: Mapping) -> str:
    lines = begin(("input", "", *(f"R_inc,{k}" for k in metrics.KS), "S", "band"))
    for part, (without, _) in paper.SIGNIFICANCE.items():
        pairs = {
            mode: (_recalls(systems[FULL]), _recalls(systems[without]))
            for mode, systems in modes.items()
            if {FULL, without} <= set(systems)
        }
        for source, (full, reduced) in {**pairs, "paper": (paper.recalls(FULL), paper.recalls(without))}.items():
            increase = [f"{metrics.increase(full, reduced, k):.1f}" if reduced[k] else "-" for k in metrics.KS]
            s = metrics.significance(full, reduced)
            texts = [part, source, *increase, "-" if np.isnan(s) else f"{s:.2f}", metrics.band(s)]
            lines.append("| " + " | ".join(texts) + " |")
    bands = ", ".join(f"up to {limit} {name}" for limit, name in metrics.BANDS)
    return "\n".join(lines) + f"\n\nThe paper's bands of S: {bands}, above that profound."


def _scales(modes: Mapping) -> str:
    lines = begin(("system", "", "scale", *COLUMNS))
    for name in SWEPT:
        for mode, systems in modes.items():
            for scale, row in systems.get(name, {"scales": {}})["scales"].items():
                lines.append("| " + " | ".join([name, mode, scale, *cells(row)]) + " |")
        for scale, figures in paper.SCALES[name].items():
            lines.append("| " + " | ".join([name, "paper", str(scale), *(f"{x:.2f}" for x in figures)]) + " |")
    return "\n".join(lines)


def claims(systems: Mapping) -> dict[str, dict]:
    """The paper's claims about one mode's systems, as paired comparisons by claim; only of systems that were measured.

    Each is a `metrics.paired` with "rate", the R@k that was compared.
    """

    def hits(name: str, rate: str, scale: str = "") -> np.ndarray:
        found = systems[name]
        return np.array(found["hits"][scale or found["chosen"]][rate])

    def measured(name: str, scale: str) -> bool:
        return scale in systems.get(name, {"hits": {}})["hits"]

    found, have = {}, set(systems)
    if {FULL, THUMBNAIL_ONLY} <= have:
        found["full input over the thumbnail alone"] = "r@1", hits(FULL, "r@1"), hits(THUMBNAIL_ONLY, "r@1")
        if measured(FULL, "0"):
            pair = hits(FULL, "r@1", "0"), hits(THUMBNAIL_ONLY, "r@1")
            found["full input at scale 0 over the thumbnail alone (equal in the paper)"] = "r@1", *pair
    for name in (NO_THUMBNAIL, "only audio"):
        if name in have:
            own, people = hits(name, "r@10"), len(hits(name, "r@10"))
            found[f"{name} over a random order"] = "r@10", own, np.full(people, metrics.random_recall(10, people))
    if {NO_AUDIO, NO_ATTRIBUTES} <= have:
        pair = hits(NO_ATTRIBUTES, "r@1"), hits(NO_AUDIO, "r@1")
        found["removing the audio costs more than removing the attributes"] = "r@1", *pair
        scale = systems[FULL]["chosen"] if FULL in have else ""
        if measured(NO_AUDIO, scale) and measured(NO_ATTRIBUTES, scale):
            pair = hits(NO_ATTRIBUTES, "r@1", scale), hits(NO_AUDIO, "r@1", scale)
            found[f"the same, both at the full input's scale {scale}"] = "r@1", *pair
    for name, what in ((NO_AUDIO, "all audio"), (NO_ATTRIBUTES, "the attributes")):
        if {name, NO_SPEAKER} <= have:
            pair = hits(NO_SPEAKER, "r@1"), hits(name, "r@1")
            found[f"removing {what} costs more than removing the speaker embeddings"] = "r@1", *pair
    return {what: {"rate": rate, **metrics.paired(a, b)} for what, (rate, a, b) in found.items()}


def _claims(modes: Mapping) -> str:
    lines = begin(("claim", "", "measure", "first", "second", "difference", "p"))
    for mode, systems in modes.items():
        for what, found in claims(systems).items():
            texts = [what, mode, found["rate"].upper(), format_rate(found["first"]), format_rate(found["second"])]
            lines.append("| " + " | ".join([*texts, points(found), p_value(found)]) + " |")
    return "\n".join(lines) + (
        "\n\nDifferences in percentage points over the same people, with 95 % intervals (Bonett & Price 2012); p by "
        "McNemar's exact test, not corrected for multiple comparisons."
    )


def _agreement(modes: Mapping) -> str:
    a, b = modes["trained"], modes["masked"]
    lines = begin(("system", "R@1 trained", "R@1 masked", "difference", "R@10 trained", "R@10 masked", "difference"))
    gaps = []
    for name in a:
        texts = []
        for rate in ("r@1", "r@10"):
            found = metrics.paired(*(np.array(each[name]["hits"][each[name]["chosen"]][rate]) for each in (a, b)))
            texts += [format_rate(found["first"]), format_rate(found["second"]), points(found)]
            gaps.append(abs(found["difference"]))
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    first, second = (np.argsort(np.argsort([_recalls(each[name])[10] for name in a])) for each in (a, b))
    correlation = np.corrcoef(first, second)[0, 1] if len(a) > 2 else None
    order = "" if correlation is None else f" Rank correlation of R@10 over systems: {correlation:.2f}."
    return "\n".join(lines) + (
        "\n\nEach at its own scale. Differences in points over the same people, with 95 % intervals (Bonett & Price "
        f"2012); their mean magnitude is {100 * np.mean(gaps):.1f}.{order}"
    )
