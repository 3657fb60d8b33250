"""Groups of inputs that each have their own guidance scale, as in `--scales voice=0:2:4,attributes=0:1:2`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from slf_common.errors import UserError
from slf_jax.inference.scales import Scales, check_distinct, parse_scale, parse_scales
from slf_jax.inference.trained import Trained
from tfrecords.schema import CONTINUOUS, EMBEDDING

NOTHING_NAMED = "give NAME=SCALE:SCALE:..., as in --scales voice=0:2:4,attributes=0:1:2"
MOST_GROUPS = 2  # the axes of a picture


def named_groups(trained: Trained, inputs: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The inputs of a system that come from the sound ("voice"), and the other ones ("attributes")."""
    kinds = {part.name: part.kind for part in trained.meta.schema.constituents}
    voice = tuple(name for name in inputs if kinds.get(name) in (EMBEDDING, CONTINUOUS))
    return {"voice": voice, "attributes": tuple(name for name in inputs if name not in voice)}


def parse(text: str, trained: Trained, without: Sequence[str]) -> tuple[Scales, tuple[str, ...]]:
    """Parses `--scales`: `0,2,4:1`, or `voice=0:2:4,mel+age=0:1`, all combinations of the scales of groups.

    A group is one of `named_groups`, or inputs joined by +. Also returns the inputs to mask: those of `--without`, and
    those in no group. Raises `UserError`.
    """
    system = trained.system.without(without)
    inputs = system.inputs
    if "=" not in text:
        points = parse_scales(text)
        system.check_scales(points, where=f"--scales {text}: ")
        return Scales(points), tuple(without)
    names, groups, values = [], [], []
    for part in filter(None, map(str.strip, text.split(","))):
        name, found, numbers = part.partition("=")
        if not found:
            raise UserError(f"--scales {text}: {part} names no group; {NOTHING_NAMED}")
        names.append(name.strip())
        groups.append(members(f"--scales {text}", names[-1], trained, inputs))
        values.append(tuple(parse_scale(number, f"--scales {text}") for number in numbers.split(":")))
        check_distinct([f"{name}={value:g}" for value in values[-1]], f"--scales {text}")
    check_distinct(names, f"--scales {text}")
    check_distinct(list(itertools.chain(*groups)), f"--scales {text}")
    if len(names) > MOST_GROUPS:
        raise UserError(f"--scales {text}: give at most {MOST_GROUPS} groups; inputs of one group are joined by +")
    masked = [name for name in inputs if name not in itertools.chain(*groups)]
    scales = Scales(tuple(itertools.product(*values)), tuple(groups), tuple(names))
    system.without(masked).check_scales(scales.points, groups, f"--scales {text}: ")
    return scales, (*without, *masked)


def members(where: str, name: str, trained: Trained, inputs: Sequence[str]) -> tuple[str, ...]:
    """The inputs of a group: one of `named_groups`, or joined by +. Raises `UserError`, which begins with `where`."""
    named = named_groups(trained, inputs)
    found = named.get(name, tuple(name.split("+")))
    if not found:
        raise UserError(f"{where}: this system has no input in the group {name}; its inputs: {', '.join(inputs)}")
    for member in found:
        if member not in inputs:
            options = f"{', '.join(named)}, or inputs joined by +, of: {', '.join(inputs)}"
            raise UserError(f"{where}: no group or input {member!r}; a group is {options}")
    return found
