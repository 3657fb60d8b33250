"""Names of the metrics in metrics.jsonl, and functions that read it. Imports no JAX."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slf_common.errors import UserError
from slf_common.files import write_atomically
from slf_jax.cascade.sizes import STAGES

VALIDATION, IDENTITY = "validation_loss", "validation_identity_cosine"
NUMBERS = (
    "loss", VALIDATION, "identity_cosine", IDENTITY, "grad_norm", "param_norm", "update_norm", "learning_rate",
    "images_per_second", "step_seconds", "data_wait", "device_memory", "skipped",
)  # fmt: skip
LISTS = ("loss_by_sigma", f"{VALIDATION}_by_sigma")


@dataclasses.dataclass(frozen=True)
class StageMetrics:
    """The lines of one stage in metrics.jsonl, those of training and of validation, in order of steps."""

    name: str
    training: Sequence[Mapping[str, Any]]
    validation: Sequence[Mapping[str, Any]]

    @property
    def step(self) -> int:
        """The last logged step; 0 if there is none."""
        return max((lines[-1]["step"] for lines in (self.training, self.validation) if lines), default=0)


def drop_lines(path: Path, stage: str, step: int) -> None:
    """Removes the lines of `stage` after `step` from metrics.jsonl, and an incomplete last line."""
    if not path.exists():
        return
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1].splitlines(keepends=True)
    try:
        kept = [line for line in whole if not ((row := json.loads(line))["stage"] == stage and row["step"] > step)]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: invalid line ({error!r}); fix or delete it") from None
    if (remaining := "".join(kept)) != text:
        write_atomically(path, remaining.encode())


def read_metrics(path: Path) -> list[StageMetrics]:
    """The stages of a metrics.jsonl, in the order of training; for the same step, later lines override earlier ones.

    Raises `UserError` if the file is missing, has no metrics yet, or has an invalid line.
    """
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; --workdir is the directory of a run that has been started, as in "
            "python -m slf_jax.train --config.workdir=RUN"
        )
    found: dict[str, tuple[dict, dict]] = {name: ({}, {}) for name in STAGES}
    for number, line in read_lines(path):
        _check(line, f"{path}, line {number}")
        found.setdefault(line["stage"], ({}, {}))[VALIDATION in line][line["step"]] = line
    stages = [StageMetrics(name, *([kind[s] for s in sorted(kind)] for kind in kinds)) for name, kinds in found.items()]
    if stages := [stage for stage in stages if stage.step]:
        return stages
    raise UserError(f"{path}: no metrics yet; the first are written after config.train.log_every steps")


def read_lines(path: Path) -> Iterator[tuple[int, dict]]:
    """The JSON objects of a file, one per line, with their line numbers; an incomplete last line is ignored.

    Raises `UserError` for any other line that is not an object.
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
                return  # still being written, or its writer was killed
            raise UserError(f"{path}, line {number}: not a JSON object ({error}); fix or delete this line") from error
        yield number, line


def _check(line: Mapping[str, Any], where: str) -> None:
    """Raises `UserError` for a line of metrics.jsonl with invalid values."""
    invalid = [key for key in NUMBERS if key in line and not _is_number(line[key])]
    invalid += [
        key for key in LISTS if key in line and not (isinstance(line[key], list) and all(map(_is_number, line[key])))
    ]
    if not isinstance(line.get("stage"), str):
        invalid.append("stage")
    if not (isinstance(line.get("step"), int) and _is_number(line["step"]) and line["step"] > 0):
        invalid.append("step")
    if invalid:
        values = ", ".join(f"{key}={json.dumps(line.get(key))[:40]}" for key in invalid)
        raise UserError(f"{where}: {values}: invalid; fix or delete this line")


def _is_number(value: object) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)


def series(lines: Sequence[Mapping[str, Any]], key: str, item: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Steps [n] and values [n] of the lines that have `key`; if its values are lists, their element `item`."""
    selected = [line for line in lines if key in line and (item is None or item < len(line[key]))]
    values = [line[key] if item is None else line[key][item] for line in selected]
    return np.array([line["step"] for line in selected], float), np.array(values, float)


def elapsed(stage: StageMetrics, batch_size: int | None) -> float | None:
    """Total seconds of all steps, from the timing in each line; None if no line has any.

    Where step_seconds is missing, it is computed from images_per_second and the batch size.
    """
    total, before, known = 0.0, 0, False
    for line in stage.training:
        seconds = line.get("step_seconds")
        if seconds is None and batch_size and line.get("images_per_second"):
            seconds = batch_size / line["images_per_second"]
        if seconds is not None and np.isfinite(seconds):
            total, before, known = total + seconds * (line["step"] - before), line["step"], True
    return total if known else None
