"""Reads requests: from the values of the page's controls, and from the arguments of the API."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

from app.limits import Limits
from app.results import Request
from app.system import LABELS, FaceSystem
from slf_common.errors import UserError
from slf_jax.cascade.settings import SampleSettings, sample_settings
from slf_jax.inference.scales import parse_scales

UNKNOWN = "unknown"
ATTRIBUTES = ("age", *LABELS)
# The settings of the sampler that the page offers; their names are those of `config.sample`.
SETTINGS = ("sampler", "steps", "sigma_schedule", "init_noise_scale", "churn", "x0_threshold", "thumbnail_consistency")
CONFIG = "config.sample."  # what messages about settings begin with


def read_attributes(values: Mapping[str, Any]) -> dict[str, Any]:
    """The known attributes; empty and "unknown" values are left out. Raises `UserError` for an age without a number."""
    given = {name: values.get(name) for name in ATTRIBUTES}
    given = {name: value.strip() if isinstance(value, str) else value for name, value in given.items()}
    known = {name: value for name, value in given.items() if value not in (None, "", UNKNOWN)}
    try:
        return {name: float(value) if name == "age" else value for name, value in known.items()}
    except ValueError:
        raise UserError(f"age {known['age']!r}: give years as a number, or leave it empty") from None


def read_request(system: FaceSystem, limits: Limits, values: Mapping[str, Any]) -> Request:
    """Reads how to draw.

    Args:
      values: `scales` (text, as in "0,2,4"), `samples`, `seed`, and any of `SETTINGS`; default: the system's own.

    Raises `UserError` for values that are invalid or exceed the limits.
    """
    scales = parse_scales(str(values["scales"]), "scales")
    samples, seed = _integer(values["samples"], "samples"), _integer(values["seed"], "seed")
    if not 0 <= seed < 2**31:
        raise UserError(f"seed {seed}: must be from 0 to {2**31 - 1}")
    settings = read_settings(system, {name: values[name] for name in SETTINGS if name in values})
    limits.check_counts(len(scales), samples, settings.steps)
    return Request(scales, samples, seed, settings)


def read_settings(system: FaceSystem, changes: Mapping[str, Any]) -> SampleSettings:
    """The system's settings of the sampler with some changed. Raises `UserError` if they are invalid."""
    config = copy.deepcopy(system.trained.meta.config)
    for name, value in changes.items():
        if name not in SETTINGS:
            raise UserError(f"{name!r}: the settings that can be changed are {', '.join(SETTINGS)}")
        old = config.sample[name]
        config.sample[name] = _integer(value, name) if type(old) is int else _like(old, value, name)
    try:
        return sample_settings(config)
    except UserError as error:
        raise UserError(str(error).replace(CONFIG, "")) from None


def _like(old: Any, value: Any, name: str) -> Any:
    """A value of the type that the setting has."""
    if isinstance(old, float) and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(old):
        raise UserError(f"{name} {value!r}: must be a {type(old).__name__}")
    return value


def _integer(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value % 1:
        raise UserError(f"{name} {value!r}: must be a whole number")
    return int(value)
