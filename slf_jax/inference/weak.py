"""Autoguidance: loads a worse version of a system to guide it with (Karras et al. 2024)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from slf_common.errors import UserError
from slf_jax.cascade.sizes import STAGES
from slf_jax.features import check_same_features
from slf_jax.inference.trained import Trained, load

# Of `config.diffusion`, what determines the diffused data, on which both systems are evaluated.
DATA = ("preconditioning", "residual", "sigma_data", "sigma_data_no_lowres", "lowres_aug_max", "flow_noise")


def with_weak(trained: Trained, text: str) -> Trained:
    """The system with a worse version of it, as given to `--guide-with`: RUN, RUN@STEP or RUN@BASE:UPSAMPLER.

    That may be an earlier checkpoint of the same run, or another run of the same diffused data and of the same or
    fewer inputs, such as one with smaller networks. Raises `UserError`.
    """
    source, steps = _parse(text)
    weak, flag = load(source, steps or "newest"), f"--guide-with {text}"
    if trained.system.max_scale or weak.system.max_scale:
        raise UserError(f"{flag}: guidance was distilled into the networks of one of the two systems; give others")
    for name in STAGES:
        ours, theirs = (each.meta.config.diffusion[name] for each in (trained, weak))
        for key in DATA:
            if ours[key] != theirs[key]:
                raise UserError(
                    f"{flag}: has diffusion.{name}.{key}={theirs[key]}, this system {ours[key]}; it must have the same"
                )
    for name in weak.system.inputs:
        if name not in trained.system.inputs:
            raise UserError(f"{flag}: uses {name!r}, which is not an input of this system")
    schema, statistics = trained.meta.schema, trained.meta.statistics
    given = weak.meta.schema, weak.meta.statistics
    check_same_features(weak.system.inputs, schema, statistics, *given, flag, "use another run")
    return dataclasses.replace(trained, weak=weak)


def _parse(text: str) -> tuple[str, Mapping[str, int] | None]:
    """The source, and the step of each stage if they are given."""
    found = re.fullmatch(r"(.+)@(\d+)(?::(\d+))?", text)
    if not found:
        return text, None
    source, base, upsampler = found.groups()
    return source, {"base": int(base), "upsampler": int(upsampler or base)}
