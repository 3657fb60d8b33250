"""Parses and formats guidance scales."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from slf_common.errors import UserError

Scale = tuple[float, float]  # of base and upsampler
LOWRES_AUG = "lowres_aug"  # in `config.sample`


@dataclasses.dataclass(frozen=True)
class Scales:
    """The guidance scales of a sweep.

    Attributes:
      points: pairs of base and upsampler; with groups, a scale for each group. With `augmented`, then the noise.
      groups: the constituents of each group of inputs with its own scale, in the order in which guidance adds them;
        (): all inputs are one group.
      names: of the groups.
      augmented: whether each point ends with a value of `config.sample.lowres_aug`.
    """

    points: Sequence[tuple[float, ...]]
    groups: tuple[tuple[str, ...], ...] = ()
    names: tuple[str, ...] = ()
    augmented: bool = False

    def __len__(self) -> int:
        return len(self.points)

    @property
    def strengths(self) -> list[tuple[float, ...]]:
        """The points without their noise."""
        return [tuple(point[:-1] if self.augmented else point) for point in self.points]

    @property
    def numbers(self) -> dict[str, list[float]]:
        """The settings that vary with the points, as a `Sampler` takes them."""
        return {LOWRES_AUG: [point[-1] for point in self.points]} if self.augmented else {}

    def key(self, point: Sequence[float]) -> str:
        """Formats a point as `2.5`, `4:1`, `voice 2, attributes 1` or `2.5, lowres_aug 0.1`."""
        if self.augmented:
            return f"{dataclasses.replace(self, augmented=False).key(point[:-1])}, {LOWRES_AUG} {point[-1]:g}"
        if not self.names:
            return format_scale((point[0], point[1]))
        return ", ".join(f"{name} {scale:g}" for name, scale in zip(self.names, point, strict=True))

    def label(self, point: Sequence[float]) -> str:
        """Like `key`, as in `scale 2.5`."""
        return self.key(point) if self.names else f"scale {self.key(point)}"

    def axes(self) -> dict[str, tuple[float | str, ...]]:
        """The different scales of each group, or formatted pairs as "scale", then the different levels of noise.

        The points are all their combinations, the last one's fastest. Empty for pairs without noise.
        """
        if not (self.groups or self.augmented):
            return {}
        columns: dict[str, Sequence]
        if self.groups:
            columns = dict(zip(self.names, zip(*self.strengths, strict=True), strict=True))
        else:
            columns = {"scale": [format_scale((pair[0], pair[1])) for pair in self.strengths]}
        return {name: tuple(dict.fromkeys(column)) for name, column in (columns | self.numbers).items()}


def parse_scales(text: str, flag: str = "--scales") -> tuple[Scale, ...]:
    """Parses `"0,2.5,4:1"` to pairs; a single number applies to both stages.

    Raises `UserError` if the list is empty, or a scale is negative, not a number, or given twice (results are stored
    by formatted scale).
    """
    parts = [part.split(":") for part in text.split(",") if part.strip()]
    scales = [tuple(parse_scale(number, f"{flag} {text}") for number in part) for part in parts]
    if not scales:
        raise UserError(f"{flag} is empty; give at least one, as in {flag} 0,1,2,4")
    if any(len(scale) > 2 for scale in scales):
        raise UserError(f"{flag} {text}: a scale is one number, or BASE:UPSAMPLER as in 4:1")
    pairs = tuple((scale[0], scale[-1]) for scale in scales)
    check_distinct([format_scale(pair) for pair in pairs], f"{flag} {text}")
    return pairs


def parse_scale(number: str, what: str) -> float:
    """Parses one guidance scale. Raises `UserError` that begins with `what`, the flag and its value."""
    try:
        scale = float(number) + 0.0  # turns -0 into 0
    except ValueError:
        raise UserError(f"{what}: give comma-separated numbers, as in 0,1,2,4") from None
    if not math.isfinite(scale) or scale < 0:
        raise UserError(f"{what}: a guidance scale is a finite number of at least 0")
    return scale


def check_distinct(names: Sequence[str], what: str) -> None:
    """Raises `UserError` if a name is given twice; `what`: the flag and its value, for the message."""
    if repeated := [name for i, name in enumerate(names) if name in names[:i]]:
        raise UserError(f"{what}: {repeated[0]} is given twice")


def format_value(value: float | str) -> str:
    """Formats one value of `Scales.axes`."""
    return value if isinstance(value, str) else f"{value:g}"


def format_scale(scale: Scale) -> str:
    """Formats a scale as `2.5`, or as `4:1` if the stages differ."""
    return f"{scale[0]:g}" if scale[0] == scale[1] else f"{scale[0]:g}:{scale[1]:g}"
