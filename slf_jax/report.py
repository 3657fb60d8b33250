"""A training run on one page: `python -m slf_jax.report --workdir runs/demo`.

Draws metrics.jsonl, the previews, the config and its changes into one HTML file that needs nothing else: no network,
no scripts. A run that is still going on can be drawn too; the page then tells how far it has come.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from slf_common import cli
from slf_common.errors import UserError
from slf_common.files import check_writable_file, local_path, write_atomically
from slf_jax import figures
from slf_jax.figures import Curve

STAGES = ("base", "upsampler")  # as in cascade.py, which would bring JAX and its seconds with it
VALIDATION = "validation_loss"
NUMBERS = (
    "loss", VALIDATION, "grad_norm", "param_norm", "update_norm", "learning_rate", "images_per_second",
    "step_seconds", "data_wait", "device_memory", "skipped",
)  # fmt: skip
LISTS = ("loss_by_sigma", f"{VALIDATION}_by_sigma")
PREVIEWS, WIDE, SMALL = 8, 1040, 320  # how many of a stage are shown; widths in pixels of the newest and the others

BLUE, ORANGE, GREEN, VIOLET = "#3b82c4", "#dd7a1e", "#2e9e6b", "#9461c9"
LEVELS = ("#e0a526", "#d9603b", "#b0459b", "#4f63c6")  # noise from low to high

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1f2328; --soft: #656d76; --line: #d8dee4; --room: #f6f8fa }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171a; --ink: #e3e6ea; --soft: #98a1ab; --line: #343a41; --room: #1d2125 } }
body { background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif;
  max-width: 1240px; margin: 0 auto; padding: 1.5rem }
h1 { margin: 0 } h2 { margin: 2.5rem 0 .5rem; border-bottom: 1px solid var(--line) } h3 { margin: 1.5rem 0 .5rem }
p, dl, table { margin: .6rem 0 } dt { float: left; clear: left; width: 7rem; color: var(--soft) }
dd { margin-left: 7rem; overflow-wrap: anywhere }
.soft, figcaption { color: var(--soft); font-size: .88rem } figcaption b { color: var(--ink); font-size: .95rem }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem 1.1rem .25rem 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top }
th { color: var(--soft); font-weight: 500; white-space: nowrap } td { overflow-wrap: anywhere }
.charts { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(25rem, 100%), 1fr)) }
figure { margin: 0 } .charts figure { background: var(--room); border-radius: 6px; padding: .7rem; max-width: 40rem }
.charts svg { width: 100%; height: auto; display: block; margin-top: .3rem }
.charts text { font-family: inherit !important }
img { display: block; max-width: 100%; height: auto } .strip { display: flex; gap: 1rem; overflow-x: auto }
.strip img { max-width: none }
details { margin: 2.5rem 0 } summary { cursor: pointer; font-weight: 600 }
pre { background: var(--room); border-radius: 6px; padding: .8rem; overflow-x: auto; font-size: .85rem }
"""


@dataclasses.dataclass(frozen=True)
class Stage:
    """What metrics.jsonl tells of one stage: its training and validation lines, each in order of steps."""

    name: str
    training: Sequence[Mapping[str, Any]]
    validation: Sequence[Mapping[str, Any]]

    @property
    def step(self) -> int:
        """The last step that is told of; 0 if none is."""
        return max((lines[-1]["step"] for lines in (self.training, self.validation) if lines), default=0)


# ---- reading


def read_metrics(path: Path) -> list[Stage]:
    """The stages of a metrics.jsonl, in the order of training; of lines for the same step the later one counts.

    Raises `UserError` where there is none, or nothing in it yet, or a line that is broken.
    """
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; --workdir is the directory of a run that has begun, as in "
            "python -m slf_jax.train --config.workdir=RUN"
        )
    found: dict[str, tuple[dict, dict]] = {name: ({}, {}) for name in STAGES}
    for number, line in read_lines(path):
        _check(line, f"{path}, line {number}")
        found.setdefault(line["stage"], ({}, {}))[VALIDATION in line][line["step"]] = line
    stages = [Stage(name, *([kind[s] for s in sorted(kind)] for kind in kinds)) for name, kinds in found.items()]
    if stages := [stage for stage in stages if stage.step]:
        return stages
    raise UserError(f"{path}: no metrics yet; the first come after config.train.log_every steps, try again then")


def read_lines(path: Path) -> Iterator[tuple[int, dict]]:
    """The JSON objects of a file, one a line, with the lines' numbers; a last line that was cut short is left out.

    Raises `UserError` for any other line that is none.
    """
    *whole, last = path.read_bytes().split(b"\n")
    for number, text in enumerate([*whole, last], 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
            if not isinstance(line, dict):
                raise ValueError("not an object")
        except ValueError as error:
            if number > len(whole):
                return  # it has no end: somebody is writing it, or was killed doing so
            raise UserError(f"{path}, line {number}: not a JSON object ({error}); mend or delete this line") from error
        yield number, line


def _check(line: Mapping[str, Any], where: str) -> None:
    """Raises `UserError` where a line of metrics.jsonl has what cannot be drawn."""
    wrong = [key for key in NUMBERS if key in line and not _is_number(line[key])]
    wrong += [
        key for key in LISTS if key in line and not (isinstance(line[key], list) and all(map(_is_number, line[key])))
    ]
    if not isinstance(line.get("stage"), str):
        wrong.append("stage")
    if not (isinstance(line.get("step"), int) and _is_number(line["step"]) and line["step"] > 0):
        wrong.append("step")
    if wrong:
        told = ", ".join(f"{key}={json.dumps(line.get(key))[:40]}" for key in wrong)
        raise UserError(f"{where}: {told} is none that training writes; mend or delete this line")


def _is_number(value: object) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)


def read_config(path: Path) -> dict[str, Any]:
    """The run's config.json; empty if there is none. Raises `UserError` where it cannot be read."""
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_bytes())
        if not isinstance(config, dict):
            raise ValueError("not an object")
        return config
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); run training again, which writes it anew") from error


def previews(workdir: Path, stage: str) -> list[tuple[int, Path]]:
    """The steps and files of a stage's previews: the newest and, evenly chosen, some of those before it."""
    names = re.compile(re.escape(stage) + r"_(\d+)\.png")
    matches = [(names.fullmatch(path.name), path) for path in (workdir / "samples").glob("*.png")]
    every = sorted((int(match[1]), path) for match, path in matches if match)
    places = np.linspace(0, len(every) - 1, min(PREVIEWS, len(every))).round().astype(int)
    return [every[i] for i in places]


# ---- numbers


def series(lines: Sequence[Mapping[str, Any]], key: str, item: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The steps [n] and values [n] of those lines that have `key`; of a list its `item`."""
    have = [line for line in lines if key in line and (item is None or item < len(line[key]))]
    values = [line[key] if item is None else line[key][item] for line in have]
    return np.array([line["step"] for line in have], float), np.array(values, float)


def elapsed(stage: Stage, batch_size: int | None) -> float | None:
    """Seconds that the steps took, by what each line tells of the steps since the one before it; None if none does.

    A run of old tells no step_seconds: there images_per_second and the batch size stand in.
    """
    total, before, told = 0.0, 0, False
    for line in stage.training:
        seconds = line.get("step_seconds")
        if seconds is None and batch_size and line.get("images_per_second"):
            seconds = batch_size / line["images_per_second"]
        if seconds is not None and np.isfinite(seconds):
            total, before, told = total + seconds * (line["step"] - before), line["step"], True
    return total if told else None


def for_stage(config: Mapping[str, Any], key: str, name: str) -> int | None:
    """A setting of `config.train` that is a whole number for each stage, or one for both; None if there is none."""
    train = config.get("train")
    value = train.get(key) if isinstance(train, dict) else None
    if isinstance(value, list) and value and name in STAGES:
        value = value[STAGES.index(name) % len(value)]
    return value if type(value) is int else None


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of a nested config as ("train.steps", value)."""
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


# ---- charts


def charts(stage: Stage, marks: Sequence[int]) -> Iterator[str]:
    """One `<figure>` for whatever the lines of a stage tell; a dotted line stands at each of the steps `marks`."""
    steps, skipped = series(stage.training, "skipped")
    wait, memory = series(stage.training, "data_wait"), series(stage.training, "device_memory")
    norms = [("gradient", "grad_norm", BLUE), ("parameters", "param_norm", GREEN), ("update", "update_norm", ORANGE)]
    zero = {"limits": (0, None)}
    panels = [
        ("Loss", "each logged step faint, its running mean bold; validation by the averaged weights", _loss(stage), {}),
        ("Loss by noise level", "running means, each level equally likely; dashed: validation", _levels(stage), {}),
        ("Norms", "", [_smooth(stage, name, key, colour) for name, key, colour in norms], {"log": True}),
        ("Learning rate", "", [Curve("", *series(stage.training, "learning_rate"), BLUE)], zero),
        ("Images per second", "", [_smooth(stage, "", "images_per_second", GREEN)], zero),
        ("Seconds a step", "", [_smooth(stage, "", "step_seconds", GREEN)], zero),
        ("Waiting for data", "% of the time", [Curve("", wait[0], 100 * wait[1], ORANGE)], {"limits": (0, 100)}),
        ("Device memory", "GiB, the most so far", [Curve("", memory[0], memory[1] / 2**30, VIOLET)], zero),
    ]  # fmt: skip
    if skipped.any():
        panels.append(("Skipped steps", "so far", [Curve("", steps, skipped, ORANGE)], zero))
    for title, note, lines, options in panels:
        lines = [line for line in lines if np.isfinite(line.y).any()]
        if lines:
            options = {"log": False, **options} if title not in ("Loss", "Loss by noise level") else options
            yield _chart(title, note, figures.curves(lines, marks=marks, **options))


def _chart(title: str, note: str, svg: str) -> str:
    caption = f"<b>{title}</b> {note}".strip()
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
    return f"<figure><figcaption>{caption}</figcaption>{svg}</figure>"


def _smooth(stage: Stage, name: str, key: str, colour: str) -> Curve:
    return Curve(name, *series(stage.training, key), colour, smooth=True)


def _loss(stage: Stage) -> list[Curve]:
    validation = Curve("validation", *series(stage.validation, VALIDATION), ORANGE, least=True)
    return [_smooth(stage, "training", "loss", BLUE), validation]


def _levels(stage: Stage) -> list[Curve]:
    """Training (means alone: eight noisy curves would hide each other) and validation loss by noise level."""
    count = max((len(line.get("loss_by_sigma", ())) for line in stage.training), default=0)
    lines = []
    for i in range(count):
        colour = LEVELS[round(i * (len(LEVELS) - 1) / max(1, count - 1))]
        name = {0: "least noise", count - 1: "most noise"}.get(i, str(i + 1))
        steps, values = series(stage.training, "loss_by_sigma", i)
        known = np.isfinite(values)
        lines.append(Curve(name, steps[known], figures.smoothed(values[known]), colour))
        lines.append(Curve("", *series(stage.validation, f"{VALIDATION}_by_sigma", i), colour, dashed=True))
    return lines


# ---- the page


def page(workdir: Path) -> str:
    """The whole page of a run as HTML. Raises `UserError` where the run cannot be read."""
    stages, config = read_metrics(workdir / "metrics.jsonl"), read_config(workdir / "config.json")
    path = workdir / "changes.jsonl"
    changes = [line for _, line in read_lines(path)] if path.is_file() else []
    name = html.escape(workdir.resolve().name)
    parts = [
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{name}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{STYLE}</style></head><body><h1>{name}</h1>",
        _head(workdir, config),
        _summary(stages, config),
        *(_section(stage, workdir, _marks(changes, stage)) for stage in stages),
        _changes(changes),
        _settings(config),
        "</body></html>",
    ]
    return "\n".join(filter(None, parts)) + "\n"


def _head(workdir: Path, config: Mapping[str, Any]) -> str:
    data = config.get("data") if isinstance(config.get("data"), dict) else {}
    written = datetime.fromtimestamp((workdir / "metrics.jsonl").stat().st_mtime, UTC)
    facts = {"run": str(workdir), "data": data.get("dir"), "inputs": data.get("inputs"), "seed": config.get("seed")}
    facts["last word"] = f"{written:%Y-%m-%d %H:%M} UTC"
    told = [f"<dt>{name}</dt><dd>{_escape(value)}</dd>" for name, value in facts.items() if value is not None]
    return f"<dl>{''.join(told)}</dl>"


def _summary(stages: Sequence[Stage], config: Mapping[str, Any]) -> str:
    """A row for each stage that has begun, or that the config says is to come."""
    begun = {stage.name: stage for stage in stages}
    coming = {"all": STAGES}.get(config.get("stage"), ()) if isinstance(config.get("stage"), str) else ()
    every = [begun.get(name) or Stage(name, (), ()) for name in dict.fromkeys((*coming, *begun))]
    names = ("stage", "steps", "batch", "loss", "validation loss", "least", "images/s", "s/step", "data wait", "time")
    rows = [[stage.name, *_figures(stage, config)] for stage in every]
    return _table(names, rows) + (
        '<p class="soft">Loss: running mean at the last step. Images/s, s/step and data wait: medians. '
        "Time: of the steps alone, without compilation, validation and previews.</p>"
    )


def _figures(stage: Stage, config: Mapping[str, Any]) -> list[str]:
    steps, batch = (for_stage(config, key, stage.name) for key in ("steps", "batch_size"))
    loss, validation, speed, seconds, wait = (
        values[np.isfinite(values)]
        for values in (
            series(stage.validation if key == VALIDATION else stage.training, key)[1]
            for key in ("loss", VALIDATION, "images_per_second", "step_seconds", "data_wait")
        )
    )
    return [
        f"{stage.step} of {steps}" if steps else f"{stage.step}",
        _told("{}", [batch] if batch else []),
        _told("{:.4g}", figures.smoothed(loss)[-1:]),
        _told("{:.4g}", validation[-1:]),
        _told("{:.4g}", np.sort(validation)[:1]),
        _told("{:.4g}", _median(speed)),
        _told("{:.3g}", _median(seconds)),
        _told("{:.1%}", _median(wait)),
        _told("{}", [_duration(t) for t in [elapsed(stage, batch)] if t is not None]),
    ]


def _median(values: np.ndarray) -> list[float]:
    return [float(np.median(values))] if values.size else []


def _told(form: str, values: Sequence) -> str:
    """The one value there is, or a dash."""
    return form.format(*values) if len(values) else "–"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _marks(changes: Sequence[Mapping[str, Any]], stage: Stage) -> list[int]:
    """The steps within what is drawn of a stage after which the config was another."""
    steps = {_after(change).get(stage.name) for change in changes}
    return sorted(step for step in steps if type(step) is int and 0 < step < stage.step)


def _after(change: Mapping[str, Any]) -> Mapping[str, Any]:
    """After which step of each stage a change came: {"base": 40}."""
    return change["after"] if isinstance(change.get("after"), dict) else {}


def _section(stage: Stage, workdir: Path, marks: Sequence[int]) -> str:
    note = '<p class="soft">Dotted: here the config was changed.</p>' if marks else ""
    shown = "".join(charts(stage, marks))
    return f'<h2>{_escape(stage.name)}</h2>{note}<div class="charts">{shown}</div>{_previews(workdir, stage.name)}'


def _previews(workdir: Path, stage: str) -> str:
    """The newest preview large, those before it small in a strip; what cannot be read is named."""
    shown = previews(workdir, stage)
    if not shown:
        return ""
    *before, newest = shown
    large = _picture(*newest, WIDE)
    strip = "".join(_picture(*one, SMALL) for one in before)
    return f"<h3>Previews</h3>{large}" + (f'<h3>Before</h3><div class="strip">{strip}</div>' if strip else "")


def _picture(step: int, path: Path, width: int) -> str:
    try:
        data, (wide, high) = figures.jpeg(path, width)
    except OSError as error:
        return f'<p class="soft">{_escape(path)} cannot be read: {_escape(error)}</p>'
    source = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
    image = f'<img src="{source}" width="{wide}" height="{high}" alt="samples after step {step}">'
    return f"<figure><figcaption>step {step}</figcaption>{image}</figure>"


def _changes(changes: Sequence[Mapping[str, Any]]) -> str:
    """A table of what was changed in the config while the run went on."""
    rows = []
    for change in changes:
        after = ", ".join(f"{name} {step}" for name, step in _after(change).items())
        settings = change.get("changes")
        for key, pair in (settings if isinstance(settings, dict) else {}).items():
            was, now = pair if isinstance(pair, list) and len(pair) == 2 else ("", pair)
            rows.append([after, key, _spell(was), _spell(now)])
    return "<h2>Changes of the config</h2>" + _table(("after step", "setting", "was", "became"), rows) if rows else ""


def _settings(config: Mapping[str, Any]) -> str:
    lines = "\n".join(f"{key} = {_spell(value)}" for key, value in flat(config))
    return f"<details><summary>Config</summary><pre>{_escape(lines)}</pre></details>" if lines else ""


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{_escape(name)}</th>" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{_escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _spell(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _escape(value: object) -> str:
    """Text for the page; a list's items parted by commas."""
    return html.escape(", ".join(map(str, value)) if isinstance(value, list) else str(value))


def main(argv: Sequence[str] | None = None) -> None:
    arguments = cli.parser(
        "slf_jax.report",
        "Draws the curves and previews of a training run, finished or not, into one HTML page.",
        [
            "python -m slf_jax.report --workdir runs/demo",
            "python -m slf_jax.report --workdir runs/vox2 --out vox2.html",
            "watch -n 600 python -m slf_jax.report --workdir runs/vox2    (anew every ten minutes)",
        ],
    )
    arguments.add_argument(
        "--workdir", type=local_path, required=True, metavar="RUN", help="directory of a training run"
    )
    arguments.add_argument("--out", type=local_path, metavar="FILE", help="page to write (default: RUN/report.html)")
    args = arguments.parse_args(argv)
    out = args.out or args.workdir / "report.html"
    check_writable_file(out)
    text = page(args.workdir).encode()
    write_atomically(out, text)
    print(f"{out} ({len(text) / 1e6:.1f} MB)")


if __name__ == "__main__":
    cli.run(main)
