"""Formats an evaluation's results: report.md in the layout of the paper's tables, and a summary for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from slf_jax.evaluation import field, metrics, paper
from slf_jax.evaluation.metrics import format_rate

RATES = tuple(f"r@{k}" for k in metrics.KS)
REPORTED = tuple(f"r@{k}" for k in metrics.REPORTED_KS)
# The columns of the paper's Tables 5, 6 and 7.
RECALL = ("R@1", "R@3", "R@5", "R@10")
ATTRIBUTES = ("gender", "ethnicity", "age group", "RMSE age")
FIDELITY = ("PSNR", "SSIM")
COLUMNS = (*RECALL, *ATTRIBUTES, *FIDELITY)
# Headings of the report and their columns.
SECTIONS = {
    "Retrieval": ("found", *(rate.upper() for rate in REPORTED)),
    "Identity": ("cosine own", "cosine others", "L2 own", "L2 others", "angle", "AUC", "EER"),
    "Attributes": (*ATTRIBUTES, "gender as real", "ethnicity as real"),
    "Fidelity": (*FIDELITY, "clipped"),
    "Distribution and diversity": ("KID", "Frechet", "diversity", "pixel SD"),
}
NOTES = {
    "Retrieval": (
        "found: images with a detected face, in percent; the others count as misses. R@k: the person's own face is "
        "among the k nearest."
    ),
    "Identity": (
        "Similarity to the person's own face in the gallery and to those of others, where a face was found: mean "
        "cosine, Euclidean distance (L2), angle in degrees. AUC and equal error rate (EER) of telling own from "
        "others by that similarity: 50 by chance; a face that was not found is rejected."
    ),
    "Attributes": (
        'Recall of the labels and root-mean-square error of the age in years, read from the faces; "as real": the '
        "same is read as from the real face. What is read from the real faces themselves is the ceiling."
    ),
    "Fidelity": ("clipped: saturated values (0 or 255), in percent."),
    "Distribution and diversity": (
        "From one sample of each person to the gallery's faces, in the embedder's space: KID (x 1000, unbiased) and "
        "Frechet distance (biased: only compare equally many faces). Diversity: mean distance between samples of a "
        "person in that space; pixel SD: standard deviation over samples of a person (of 255)."
    ),
}
HEAD = (*(rate.upper() for rate in REPORTED), "cosine own", "cosine others", "angle", "AUC", "EER")
HEAD_NOTE = (
    "No face is drawn: the gallery's faces are ranked by the cosine between their stored embeddings and the one that "
    "is predicted from the conditions, both relative to the mean training face. The thumbnail is not used."
)
EMBEDDER_NOTES = {
    "dlib": "**dlib**'s face network (128 values): two faces of one person are mostly less than 0.6 apart. Age, gender "
    "and ethnicity are read from its embeddings by linear models fitted to the labels of the training split.",
    "eigenfaces": "**Eigenfaces** (principal components of the training faces inside an oval) replace a face network "
    "here: they compare pixels. Ages and labels are linear estimates from the same components.",
}


def markdown(results: Mapping) -> str:
    """The whole report."""
    parts = [
        f"# {results['subject']}: {results['people']} people of split {results['split']!r}",
        _how(results),
        _protocol(results),
        *_sections(results),
        _choice(results),
        "## What each input contributes",
        _significance(results),
        f"## {results['chosen']} against the others",
        _differences(results),
        "## By group",
        _groups(results),
        "## Figures",
        "`faces.png`, `rank_curve.png`, `confusion.png`" + (", `scales.png`" if len(results["systems"]) > 1 else ""),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def short(results: Mapping) -> str:
    """The main results, for the terminal."""
    shown = {**results["systems"], **results["masked"], **results["controls"]}
    lines = [f"{results['people']} people, gallery of {results['gallery']}, {results['embedder']}, percent"]
    lines.append("{:40}".format("") + "".join(f"{name:>8}" for name in ("R@1", "R@3", "R@5", "R@10", "PSNR", "SSIM")))
    for name, row in shown.items():
        rates = "".join(f"{100 * row[rate]['rate']:8.1f}" for rate in RATES)
        mark = " *" if name == results["chosen"] else ""
        lines.append(f"{name + mark:40}{rates}{_mean(row['psnr'], '.2f'):>8}{_mean(row['ssim'], '.3f'):>8}")
    rates = "".join(f"{100 * results['random'][rate]['rate']:8.1f}" for rate in RATES)
    return "\n".join([*lines, f"{'random':40}{rates}", f"* chosen by {results['chosen_by']}"])


def _guided_with(results: Mapping) -> str:
    weak = results["guided_with"] or {}
    return "".join(f"; guided with {stage} {digest[:12]}" for stage, digest in weak.items())


def _how(results: Mapping) -> str:
    people, absent, settings = results["people"], results["not_in_gallery"], results["sampler"]
    other = results["gallery_of_another_clip"]
    own = people - absent - other
    frames = f"from a clip other than the thumbnail's for {other} people"
    frames += f", from the thumbnail's own for {own} (which is easier)" if own else ""
    frames += f", missing for {absent}, who count as misses" if absent else ""
    evaluations = ", ".join(f"{stage} {count}" for stage, count in settings["evaluations"].items())
    lines = [
        f"Gallery: {results['gallery']} real faces in LanceDB, {frames}. Faces are compared by `{results['embedder']}` "
        f"({results['metric']}). Images without a detected face count as misses: all rates are over {people} people.",
        EMBEDDER_NOTES.get(results["embedder"], ""),
        f"Inputs: {', '.join(results['inputs']) or 'none'}; {'with' if results['thumbnail'] else 'without'} thumbnail. "
        f"{settings['sampler']}, evaluations per stage: {evaluations}; seed {results['seed']}, "
        f"{results['samples']} sample(s) of each person. Checkpoints: "
        + ", ".join(f"{stage} {digest[:12]}" for stage, digest in results["checkpoints"].items())
        + _guided_with(results)
        + f". Data: `{results['data']}`.",
        "Rates are in percent; in brackets the 95 % interval (Wilson; with several samples, for the effective "
        "number of people). PSNR in dB and SSIM (7x7 window, RGB) of uint8 faces are scikit-image's.",
    ]
    return "\n\n".join(line for line in lines if line)


def begin(head: Sequence[str]) -> list[str]:
    """The first two lines of a table."""
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]


def cells(row: Mapping, columns: Sequence[str] = COLUMNS) -> list[str]:
    """The values of a `protocol.summary` for these columns, as text; recalls, AUC and EER with their intervals."""
    texts = _recalls(row)
    texts |= {name: _rate(row[name.replace(" ", "_")]) for name in ATTRIBUTES[:3]}
    texts["RMSE age"] = "-" if row["age_rmse"] is None else f"{row['age_rmse']:.2f}"
    texts |= {"PSNR": _mean(row["psnr"], ".2f"), "SSIM": _mean(row["ssim"], ".3f")}
    texts["found"] = f"{100 * row['faces_found']:.1f}"
    if "identity" in row:
        texts |= _measures(row)
    return [texts.get(column, "-") for column in columns]


def _recalls(row: Mapping) -> dict[str, str]:
    return {rate.upper(): _rate(row.get(rate), interval=True) for rate in REPORTED}


def _similarities(found: Mapping) -> dict[str, str]:
    """Those of `identity.identity`, as text by column."""
    pairs = found["verification"] or {"auc": None, "eer": None}
    texts = {f"cosine {whose}": _mean(found[f"cosine_{whose}"], ".3f", whose == "own") for whose in ("own", "others")}
    texts |= {f"L2 {whose}": _mean(found[f"l2_{whose}"], ".3f", whose == "own") for whose in ("own", "others")}
    texts |= {"angle": _mean(found["angle"], ".1f")}
    return texts | {"AUC": _rate(pairs["auc"], interval=True), "EER": _rate(pairs["eer"], interval=True)}


def _measures(row: Mapping) -> dict[str, str]:
    """Those of `measures.measure`, as text by column."""
    texts = _similarities(row["identity"])
    texts |= {f"{name} as real": _rate(value, interval=True) for name, value in row["agreement"].items()}
    texts["clipped"] = "-" if row["clipped"] is None else f"{100 * row['clipped']['mean']:.2f}"
    if row["distribution"]:
        texts |= {"KID": f"{1000 * row['distribution']['kid']:.1f}", "Frechet": f"{row['distribution']['frechet']:.1f}"}
    return texts | {"diversity": _mean(row["diversity"], ".3f"), "pixel SD": _mean(row["pixel_deviation"], ".1f")}


def points(found: Mapping) -> str:
    """The difference of a `metrics.paired` in percentage points, with its interval."""
    return f"{100 * found['difference']:+.1f} [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]"


def p_value(found: Mapping) -> str:
    """McNemar's p of a `metrics.paired`, as text."""
    return "-" if found["p_mcnemar"] is None else f"{found['p_mcnemar']:.2g}"


def _sections(results: Mapping) -> list[str]:
    """One table for each kind of measure, of all systems and controls on the same people."""
    rows = {**results["systems"], **results["masked"], **results["controls"]}
    parts = []
    for heading, columns in SECTIONS.items():
        real = heading not in ("Retrieval", "Identity") and results["real"] not in results["controls"].values()
        shown = {**rows, "real faces": results["real"]} if real else rows
        notes = [_random(results)] if heading == "Retrieval" else []
        if heading == "Attributes":
            notes += _unmeasured(rows)
        if table := _table(shown, columns, results["chosen"]):
            parts += [f"## {heading}", table, NOTES[heading]]
        parts += notes
    return [*parts, *_identity_head(results), _deviations(rows)]


def _identity_head(results: Mapping) -> list[str]:
    """Faces ranked by the embeddings that the identity head predicts."""
    if not results.get("identity_head"):
        return []
    texts = {name: _recalls(row) | _similarities(row["identity"]) for name, row in results["identity_head"].items()}
    columns = [column for column in HEAD if any(column in row for row in texts.values())]
    lines = begin(("predicted from", *columns))
    lines += [
        "| " + " | ".join([name, *(row.get(column, "-") for column in columns)]) + " |" for name, row in texts.items()
    ]
    return ["## Identity head", "\n".join(lines), HEAD_NOTE]


def _table(rows: Mapping[str, Mapping], columns: Sequence[str], chosen: str = "") -> str:
    """A table of these columns, without those that are empty; empty if all are."""
    texts = {name: dict(zip(columns, cells(row, columns), strict=True)) for name, row in rows.items()}
    used = [column for column in columns if any(row[column] != "-" for row in texts.values())]
    lines = begin(("system", *used))
    for name, row in texts.items():
        label = f"**{name}**" if name == chosen else name
        lines.append("| " + " | ".join([label, *(row[column] for column in used)]) + " |")
    return "\n".join(lines) if used else ""


def _unmeasured(rows: Mapping[str, Mapping]) -> list[str]:
    return [
        f"The {what} was not measured: it is unknown for all people, or no model is available to estimate it."
        for rate, what in (("gender", "gender"), ("ethnicity", "ethnicity"), ("age_group", "age"))
        if all(row[rate] is None for row in rows.values())
    ]


def _deviations(rows: Mapping[str, Mapping]) -> str:
    lines = [
        f"- {name}: " + ", ".join(f"{what} {value:.3g}" for what, value in row["sd_over_samples"].items())
        for name, row in rows.items()
        if "sd_over_samples" in row
    ]
    return "\n".join(["Standard deviation over samples (recalls as shares of 1):\n", *lines]) if lines else ""


def _protocol(results: Mapping) -> str:
    """The measures of a published protocol beside its published results."""
    if not (name := results.get("protocol")):
        return ""
    protocol = field.PROTOCOLS[name]
    lines = [_table(results["systems"], protocol.columns, results["chosen"])]
    used = lines[0].splitlines()[0].strip("| ").split(" | ")[1:]
    for system, figures in protocol.published.items():
        texts = dict(zip(protocol.columns, figures, strict=True))
        lines.append("| " + " | ".join([f"{system} (published)", *(texts[column] for column in used)]) + " |")
    return f"## Protocol `{name}`\n\n" + "\n".join(lines) + f"\n\n{protocol.note}"


def _mean(value: Mapping | None, form: str, interval: bool = False) -> str:
    if value is None:
        return "-"
    text = format(value["mean"], form)
    return f"{text} [{value['low']:{form}}, {value['high']:{form}}]" if interval and value["low"] is not None else text


def _rate(value: Mapping | None, interval: bool = False) -> str:
    if value is None:
        return "-"
    text = format_rate(value["rate"])
    return f"{text} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]" if interval else text


def _choice(results: Mapping) -> str:
    lines = [f"**{results['chosen']}** was chosen by {results['chosen_by']}."]
    if results["validation_weighted_recall"]:
        each = ", ".join(
            f"{scale}: {100 * value:.1f}" for scale, value in results["validation_weighted_recall"].items()
        )
        lines.append(f"Their recall weighted as in Eq. 4, by scale: {each}.")
    if results["best_on_test"]:
        best = results["systems"][results["best_on_test"]]["r@1"]
        lines.append(
            f"For comparison only, chosen on the test people as in the paper: best is {results['best_on_test']} with "
            f"R@1 {format_rate(best['rate'])}."
        )
    return " ".join(lines)


def _random(results: Mapping) -> str:
    reported = [rate for rate in REPORTED if rate in results["random"]]
    rates = " / ".join(f"{100 * results['random'][rate]['rate']:.2f}" for rate in reported)
    drawn = " / ".join(f"{100 * results['random'][rate]['simulated']:.2f}" for rate in reported)
    orders = results["random"]["orders"]
    text = f"A random order of the gallery: {rates} in expectation, {drawn} over {orders} simulated orders."
    if (p := results["random"]["p_of_r@10"].get(results["chosen"])) is not None:
        text += f" Exact binomial test that {results['chosen']} is above chance at R@10: p = {p:.2g}."
    return text


def _significance(results: Mapping) -> str:
    if not results["significance"]:
        return "This system has only one input."
    lines = begin(("input", "S", "band", "paper's S"))
    for name, found in results["significance"].items():
        s = "-" if found["s"] is None else f"{found['s']:.2f}"
        published = paper.SIGNIFICANCE.get(name, ("", "-"))[1]
        lines.append(f"| {name} | {s} | {found['band']} | {published} |")
    return "\n".join(lines) + (
        "\n\nS (Eq. 3-4) of this system with and without the input, which is masked in sampling; the paper trained one "
        "system for each input, on real people. Undefined where a recall without the input is 0."
    )


def _differences(results: Mapping) -> str:
    lines = begin(("against", "R@1", "p", "R@10", "p", "PSNR", "p", "SSIM", "p"))
    for name, found in results["differences"].items():
        parts = [part for rate in ("r@1", "r@10") for part in (points(found[rate]), p_value(found[rate]))]
        parts += [part for key, form in (("psnr", "+.2f"), ("ssim", "+.3f")) for part in _difference(found[key], form)]
        lines.append("| " + " | ".join([name, *parts]) + " |")
    return "\n".join(lines) + (
        "\n\nDifferences over the same people with 95 % intervals: recall in percentage points (Bonett & Price 2012), "
        "p by McNemar's exact test; PSNR in dB and SSIM by Student's paired t. Not corrected for multiple comparisons."
    )


def _difference(found: Mapping | None, form: str) -> tuple[str, str]:
    """The difference of a `metrics.paired_means` with its interval, and its p."""
    if found is None:
        return "-", "-"
    return f"{found['difference']:{form}} [{found['low']:{form}}, {found['high']:{form}}]", f"{found['p']:.2g}"


def _groups(results: Mapping) -> str:
    groups = dict(results["groups"])
    gap = groups.pop("largest_gap")
    lines = begin(("group", "N", *RECALL))
    for kind, members in groups.items():
        for name, row in members.items():
            rates = " | ".join(_rate(row[rate], interval=True) for rate in RATES)
            lines.append(f"| {kind.replace('_', ' ')}: {name} | {row['r@1']['n']} | {rates} |")
    if len(lines) == 2:
        return "Age, gender and ethnicity are unknown for all people."
    if not gap:
        return "\n".join(lines) + "\n\nNo two groups are large enough to compare."
    return "\n".join(lines) + (
        f"\n\nLargest gap in R@10 between groups of at least five people: {gap['kind'].replace('_', ' ')}, "
        f"{gap['most']} over {gap['least']} by {100 * gap['gap']:.1f} points."
    )
