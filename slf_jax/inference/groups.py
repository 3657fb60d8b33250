"""Groups of inputs that each have their own guidance scale, as in `--scales voice=0:2:4,attributes=0:1:2`."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from slf_common.errors import UserError
from slf_jax.cascade.system import AUTO, THUMBNAIL
from slf_jax.inference.scales import Scales, check_distinct, parse_scale, parse_scales
from slf_jax.inference.trained import Trained
from tfrecords.schema import CONTINUOUS, EMBEDDING

NOTHING_NAMED = "give NAME=SCALE:SCALE:..., as in --scales voice=0:2:4,attributes=0:1:2"
MOST_GROUPS = 2  # the axes of a picture


def named_groups(trained: Trained, inputs: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The inputs of a system that come from the sound ("voice"), the other ones ("attributes"), and all of them."""
    kinds = {part.name: part.kind for part in trained.meta.schema.constituents}
    voice = tuple(name for name in inputs if kinds.get(name) in (EMBEDDING, CONTINUOUS))
    return {
        "voice": voice,
        "attributes": tuple(name for name in inputs if name not in voice),
        "all": tuple(inputs),
    }


def parse(
    text: str, trained: Trained, without: Sequence[str], use_thumbnail: bool = True
) -> tuple[Scales, tuple[str, ...]]:
    """Parses `--scales`: `0,2,4:1`, or `voice=0:2:4,mel+age=0:1`, all combinations of the scales of groups.

    A group is one of `named_groups`, or inputs joined by +, among which the thumbnail may be; that of autoguidance
    becomes the last one. Also returns the inputs to mask: those of `--without`, and those in no group. Raises
    `UserError`.
    """
    system = trained.system.without(without)
    inputs = system.inputs
    if "=" not in text:
        points = parse_scales(text)
        system.check_scales(points, where=f"--scales {text}: ")
        return Scales(points), tuple(without)
    names, groups, values = [], [], []
    parts = filter(None, map(str.strip, text.split(",")))
    for part in sorted(parts, key=lambda part: part.partition("=")[0].strip() == AUTO):
        name, found, numbers = part.partition("=")
        if not found:
            raise UserError(f"--scales {text}: {part} names no group; {NOTHING_NAMED}")
        names.append(name.strip())
        groups.append(members(f"--scales {text}", names[-1], trained, inputs))
        values.append(tuple(parse_scale(number, f"--scales {text}") for number in numbers.split(":")))
        check_distinct([f"{name}={value:g}" for value in values[-1]], f"--scales {text}")
    check_distinct(names, f"--scales {text}")
    check_distinct(list(itertools.chain(*groups)), f"--scales {text}")
    if THUMBNAIL in itertools.chain(*groups):
        _check_thumbnail(text, trained, use_thumbnail)
    if trained.weak and (names[-1] != AUTO or len(names) < 2):
        raise UserError(f"--scales {text}: with --guide-with, give all=1:2,{AUTO}=1:2, or its scales alone, as in 1,2")
    if len(names) > MOST_GROUPS:
        raise UserError(f"--scales {text}: give at most {MOST_GROUPS} groups; inputs of one group are joined by +")
    masked = [name for name in inputs if name not in itertools.chain(*groups)]
    scales = Scales(tuple(itertools.product(*values)), tuple(groups), tuple(names))
    system.without(masked).check_scales(scales.points, groups, f"--scales {text}: ")
    return scales, (*without, *masked)


def with_lowres_aug(scales: Scales, text: str, trained: Trained) -> Scales:
    """All combinations of the scales and of the levels of noise in `--lowres-aug`; "": the scales alone.

    Raises `UserError`.
    """
    if not text.strip():
        return scales
    flag, most = f"--lowres-aug {text}", trained.meta.config.diffusion.upsampler.lowres_aug_max
    try:
        levels = [float(level) for level in text.split(",") if level.strip()]
    except ValueError:
        raise UserError(f"{flag}: give comma-separated numbers, as in 0,0.05,0.1") from None
    if not all(0 <= level <= most for level in levels):
        raise UserError(
            f"{flag}: give numbers from 0 to {most:g}, the most in training (config.diffusion.upsampler.lowres_aug_max)"
        )
    check_distinct([f"{level:g}" for level in levels], flag)
    if len(scales.names) == MOST_GROUPS:
        raise UserError(f"{flag}: a picture has two axes; give --scales of one group of inputs, or without groups")
    points = [(*point, level) for point in scales.points for level in levels]
    return dataclasses.replace(scales, points=points, augmented=True)


def _check_thumbnail(text: str, trained: Trained, use_thumbnail: bool) -> None:
    if not use_thumbnail:
        raise UserError(f"--scales {text}: there is no {THUMBNAIL} with --no-thumbnail; leave out one of them")
    if not trained.meta.config.train.thumbnail_drop:
        raise UserError(
            f"--scales {text}: this system was always trained with the {THUMBNAIL} (config.train.thumbnail_drop=0), so "
            "it cannot have a scale of its own"
        )


def members(where: str, name: str, trained: Trained, inputs: Sequence[str]) -> tuple[str, ...]:
    """The inputs of a group: one of `named_groups`, or joined by +. Raises `UserError`, which begins with `where`."""
    named = named_groups(trained, inputs)
    if name == AUTO:
        if not trained.weak:
            raise UserError(f"{where}: {AUTO} is the scale of a worse system; give that with --guide-with")
        return (AUTO,)
    found = named.get(name, tuple(name.split("+")))
    if not found:
        raise UserError(f"{where}: this system has no input in the group {name}; its inputs: {', '.join(inputs)}")
    for member in found:
        if member not in (*inputs, THUMBNAIL):
            options = f"{', '.join(named)}, or inputs joined by +, of: {', '.join(inputs)}, {THUMBNAIL}"
            raise UserError(f"{where}: no group or input {member!r}; a group is {options}")
    return found
