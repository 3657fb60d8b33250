"""Renders a training run as one HTML page: curves, previews, the config and its changes."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from slf_common.errors import UserError
from slf_jax.cascade.sizes import STAGES
from slf_jax.plots import curves, grids
from slf_jax.plots.curves import Curve
from slf_jax.training.metrics import VALIDATION, StageMetrics, elapsed, read_lines, read_metrics, series

PREVIEWS, WIDE, SMALL = 8, 1040, 320  # previews per stage; widths in pixels of the newest and of the others
BLUE, ORANGE, GREEN, VIOLET = "#3b82c4", "#dd7a1e", "#2e9e6b", "#9461c9"
LEVELS = ("#e0a526", "#d9603b", "#b0459b", "#4f63c6")  # colours of noise levels, low to high
SUMMARY = ("stage", "steps", "batch", "loss", "validation loss", "lowest", "images/s", "s/step", "data wait", "time")


def page(workdir: Path) -> str:
    """The page of a run as HTML. Raises `UserError` if the run cannot be read."""
    stages, config = read_metrics(workdir / "metrics.jsonl"), read_config(workdir / "config.json")
    path = workdir / "changes.jsonl"
    changes = [line for _, line in read_lines(path)] if path.is_file() else []
    environment = jinja2.Environment(loader=jinja2.PackageLoader("slf_jax", "plots"), autoescape=True)
    return environment.get_template("report.html.j2").render(
        name=workdir.resolve().name,
        facts=_facts(workdir, config),
        summary_columns=SUMMARY,
        summary=_summary(stages, config),
        stages=[_stage(stage, workdir, changes) for stage in stages],
        changes=_changes(changes),
        settings={key: _json(value) for key, value in _flat(config)},
    )


def read_config(path: Path) -> dict[str, Any]:
    """The run's config.json; empty if there is none. Raises `UserError` if it cannot be read."""
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_bytes())
        if not isinstance(config, dict):
            raise ValueError("not an object")
        return config
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); run training again, which rewrites it") from error


def _facts(workdir: Path, config: Mapping[str, Any]) -> dict[str, object]:
    data = _group(config, "data")
    inputs = data.get("inputs")
    written = datetime.fromtimestamp((workdir / "metrics.jsonl").stat().st_mtime, UTC)
    facts = {
        "run": workdir,
        "data": data.get("dir"),
        "inputs": ", ".join(map(str, inputs)) if isinstance(inputs, list) else inputs,
        "seed": config.get("seed"),
        "last update": f"{written:%Y-%m-%d %H:%M} UTC",
    }
    return {name: value for name, value in facts.items() if value is not None}


# ---- numbers


def _summary(stages: Sequence[StageMetrics], config: Mapping[str, Any]) -> list[list[str]]:
    """A table row for each stage that has started or is going to be trained."""
    started = {stage.name: stage for stage in stages}
    planned = STAGES if config.get("stage") == "all" else ()
    names = dict.fromkeys((*planned, *started))
    return [[name, *_figures(started.get(name) or StageMetrics(name, (), ()), config)] for name in names]


def _figures(stage: StageMetrics, config: Mapping[str, Any]) -> list[str]:
    settings = _group(_group(config, "train"), stage.name)
    steps, batch = (settings.get(key) if type(settings.get(key)) is int else None for key in ("steps", "batch_size"))
    loss, validation, speed, seconds, wait = (
        values[np.isfinite(values)]
        for values in (
            series(stage.validation if key == VALIDATION else stage.training, key)[1]
            for key in ("loss", VALIDATION, "images_per_second", "step_seconds", "data_wait")
        )
    )
    time = elapsed(stage, batch)
    return [
        f"{stage.step} of {steps}" if steps else f"{stage.step}",
        _or_dash("{}", [batch] if batch else []),
        _or_dash("{:.4g}", curves.smoothed(loss)[-1:]),
        _or_dash("{:.4g}", validation[-1:]),
        _or_dash("{:.4g}", np.sort(validation)[:1]),
        _or_dash("{:.4g}", _median(speed)),
        _or_dash("{:.3g}", _median(seconds)),
        _or_dash("{:.1%}", _median(wait)),
        _or_dash("{}", [] if time is None else [_duration(time)]),
    ]


def _median(values: np.ndarray) -> list[float]:
    return [float(np.median(values))] if values.size else []


def _or_dash(form: str, values: Sequence | np.ndarray) -> str:
    """The value formatted by `form`, or a dash if there is none."""
    return form.format(*values) if len(values) else "–"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


# ---- one stage


def _stage(stage: StageMetrics, workdir: Path, changes: Sequence[Mapping[str, Any]]) -> dict:
    marks = _marks(changes, stage)
    return {
        "name": stage.name,
        "marks": marks,
        "charts": list(charts(stage, marks)),
        "previews": list(_previews(workdir, stage.name)),
    }


def _marks(changes: Sequence[Mapping[str, Any]], stage: StageMetrics) -> list[int]:
    """The steps of a stage after which the config changed."""
    steps = {_group(change, "after").get(stage.name) for change in changes}
    return sorted(step for step in steps if type(step) is int and 0 < step < stage.step)


def charts(stage: StageMetrics, marks: Sequence[int]) -> Iterator[dict[str, str]]:
    """Title, note and SVG of each chart for which a stage has metrics, with a dotted line at each step in `marks`."""
    for title, note, lines, options in _panels(stage):
        lines = [line for line in lines if np.isfinite(line.y).any()]
        if lines:
            svg = curves.curves(lines, marks=marks, **options)
            yield {
                "title": title,
                "note": note,
                "svg": svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1),
            }


def _panels(stage: StageMetrics) -> list[tuple[str, str, list[Curve], dict]]:
    """The title, note, curves and options of each chart."""
    steps, skipped = series(stage.training, "skipped")
    wait, memory = series(stage.training, "data_wait"), series(stage.training, "device_memory")
    norms = [("gradient", "grad_norm", BLUE), ("parameters", "param_norm", GREEN), ("update", "update_norm", ORANGE)]
    linear: dict = {"log": False, "limits": (0, None)}
    panels: list[tuple[str, str, list[Curve], dict]] = [
        ("Loss", "logged steps faint, running mean bold; validation with the averaged weights", _loss(stage), {}),
        ("Loss by noise level", "running means; each level is equally likely; dashed: validation", _levels(stage), {}),
        ("Norms", "", [_smooth(stage, name, key, colour) for name, key, colour in norms], {"log": True}),
        ("Learning rate", "", [Curve("", *series(stage.training, "learning_rate"), BLUE)], linear),
        ("Images per second", "", [_smooth(stage, "", "images_per_second", GREEN)], linear),
        ("Seconds per step", "", [_smooth(stage, "", "step_seconds", GREEN)], linear),
        ("Waiting for data", "% of the time", [Curve("", wait[0], 100 * wait[1], ORANGE)],
         {"log": False, "limits": (0, 100)}),
        ("Device memory", "GiB, peak so far", [Curve("", memory[0], memory[1] / 2**30, VIOLET)], linear),
    ]  # fmt: skip
    if skipped.any():
        panels.append(("Skipped steps", "so far", [Curve("", steps, skipped, ORANGE)], linear))
    return panels


def _smooth(stage: StageMetrics, name: str, key: str, colour: str) -> Curve:
    return Curve(name, *series(stage.training, key), colour, smooth=True)


def _loss(stage: StageMetrics) -> list[Curve]:
    validation = Curve("validation", *series(stage.validation, VALIDATION), ORANGE, mark_minimum=True)
    return [_smooth(stage, "training", "loss", BLUE), validation]


def _levels(stage: StageMetrics) -> list[Curve]:
    """Training loss and validation loss by noise level; running means, since eight noisy curves would be unreadable."""
    count = max((len(line.get("loss_by_sigma", ())) for line in stage.training), default=0)
    lines = []
    for i in range(count):
        colour = LEVELS[round(i * (len(LEVELS) - 1) / max(1, count - 1))]
        name = {0: "lowest noise", count - 1: "highest noise"}.get(i, str(i + 1))
        steps, values = series(stage.training, "loss_by_sigma", i)
        known = np.isfinite(values)
        lines.append(Curve(name, steps[known], curves.smoothed(values[known]), colour))
        lines.append(Curve("", *series(stage.validation, f"{VALIDATION}_by_sigma", i), colour, dashed=True))
    return lines


def find_previews(workdir: Path, stage: str) -> list[tuple[int, Path]]:
    """Steps and files of a stage's previews: at most `PREVIEWS`, evenly spaced, the newest included."""
    names = re.compile(re.escape(stage) + r"_(\d+)\.png")
    matches = [(names.fullmatch(path.name), path) for path in (workdir / "samples").glob("*.png")]
    found = sorted((int(match[1]), path) for match, path in matches if match)
    indices = np.linspace(0, len(found) - 1, min(PREVIEWS, len(found))).round().astype(int)
    return [found[i] for i in indices]


def _previews(workdir: Path, stage: str) -> Iterator[dict]:
    shown = find_previews(workdir, stage)
    for step, path in shown:
        try:
            data, (width, height) = grids.jpeg(path, WIDE if step == shown[-1][0] else SMALL)
        except OSError as error:
            yield {"step": step, "path": path, "error": error}
        else:
            yield {"step": step, "data": base64.b64encode(data).decode(), "width": width, "height": height}


# ---- the config


def _changes(changes: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A row for each setting that changed during the run: the steps before the change, its key, old and new value."""
    rows = []
    for change in changes:
        after = ", ".join(f"{name} {step}" for name, step in _group(change, "after").items())
        for key, pair in _group(change, "changes").items():
            old, new = pair if isinstance(pair, list) and len(pair) == 2 else ("", pair)
            rows.append([after, key, _json(old), _json(new)])
    return rows


def _group(tree: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The object under `key`, empty if there is none."""
    return tree[key] if isinstance(tree.get(key), dict) else {}


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of a nested config as pairs ("train.base.steps", value)."""
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
