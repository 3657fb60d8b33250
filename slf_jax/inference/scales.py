"""Parses and formats guidance scales."""

from __future__ import annotations

import math
from collections.abc import Sequence

from slf_common.errors import UserError

Scale = tuple[float, float]  # of base and upsampler


def parse_scales(text: str, flag: str = "--scales") -> tuple[Scale, ...]:
    """Parses `"0,2.5,4:1"` to pairs; a single number applies to both stages.

    Raises `UserError` if the list is empty, or a scale is negative, not a number, or given twice (results are stored
    by formatted scale).
    """
    try:
        # + 0.0 turns -0 into 0.
        scales = [tuple(float(number) + 0.0 for number in part.split(":")) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UserError(f"{flag} {text!r}: give comma-separated numbers, as in {flag} 0,1,2,4") from None
    if not scales:
        raise UserError(f"{flag} is empty; give at least one, as in {flag} 0,1,2,4")
    if any(len(scale) > 2 for scale in scales):
        raise UserError(f"{flag} {text}: a scale is one number, or BASE:UPSAMPLER as in 4:1")
    if any(not math.isfinite(number) or number < 0 for scale in scales for number in scale):
        raise UserError(f"{flag} {text}: a guidance scale is a finite number of at least 0")
    pairs = tuple((scale[0], scale[-1]) for scale in scales)
    check_distinct([format_scale(pair) for pair in pairs], f"{flag} {text}")
    return pairs


def check_distinct(names: Sequence[str], what: str) -> None:
    """Raises `UserError` if a name is given twice; `what`: the flag and its value, for the message."""
    if repeated := [name for i, name in enumerate(names) if name in names[:i]]:
        raise UserError(f"{what}: {repeated[0]} is given twice")


def format_scale(scale: Scale) -> str:
    """Formats a scale as `2.5`, or as `4:1` if the stages differ."""
    return f"{scale[0]:g}" if scale[0] == scale[1] else f"{scale[0]:g}:{scale[1]:g}"
