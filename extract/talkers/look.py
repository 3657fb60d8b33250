"""What varies between clips of one person: pose, light, background, clothes, expression."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from extract.talkers.pen import Colour

SIZE = 160  # pixels of a frame's side
CLOTHES = ((52, 62, 88), (122, 44, 48), (150, 150, 146), (66, 92, 70))
_LAMPS = 8  # points of the light's grid along a side


def _smooth_steps() -> np.ndarray:
    """Weights [160, 8] that interpolate the light's grid with smooth steps."""
    place = np.linspace(0.0, _LAMPS - 1.0, SIZE)
    distance = np.clip(np.abs(place[:, None] - np.arange(_LAMPS)), 0.0, 1.0)
    return (1.0 - distance**2 * (3.0 - 2.0 * distance)).astype(np.float32)


_SPREAD = _smooth_steps()


@dataclass(frozen=True)
class Look:
    """What varies between clips of one person."""

    shift: tuple[float, float]  # fractions of the frame
    angle: float  # radians
    scale: float
    background: Colour
    clothes: int
    light: tuple[tuple[float, ...], ...]  # brightness on a coarse grid over the frame
    tint: tuple[float, float, float]  # colour of the light
    smile: float  # lift of the mouth's corners, fractions of the frame


def draw_look(rng: np.random.Generator) -> Look:
    """Draw one clip's pose, light and background; geometry moves little, colours move freely."""
    hue = rng.uniform(70.0, 200.0) + rng.uniform(-35.0, 35.0, 3)
    return Look(
        shift=tuple(rng.normal(0.0, 0.003, 2).tolist()),
        angle=float(np.deg2rad(rng.normal(0.0, 0.6))),
        scale=float(rng.normal(1.0, 0.006)),
        background=tuple(hue.astype(int).tolist()),
        clothes=int(rng.integers(len(CLOTHES))),
        light=_draw_light(rng),
        tint=tuple(rng.uniform(0.96, 1.04, 3).tolist()),
        smile=float(rng.uniform(-0.002, 0.008)),
    )


def _draw_light(rng: np.random.Generator) -> tuple[tuple[float, ...], ...]:
    """Overall brightness, a slope, and soft shadows about as large as a thumbnail's pixels.

    The shadows make a dark spot of the thumbnail ambiguous: it may be a brow, or only shade.
    """
    across, down = np.meshgrid(*[np.linspace(-1.0, 1.0, _LAMPS)] * 2)
    slope = rng.uniform(-0.12, 0.12, 2)
    shadows = rng.normal(0.0, 0.075, (_LAMPS, _LAMPS))
    field = rng.uniform(0.85, 1.08) * (1.0 + slope[0] * across + slope[1] * down + shadows)
    return tuple(tuple(row) for row in field.tolist())


def light(pixels: np.ndarray, look: Look) -> np.ndarray:
    """Light the whole frame: a tinted gain that changes smoothly across it."""
    field = _SPREAD @ np.array(look.light, dtype=np.float32) @ _SPREAD.T
    lit = pixels * (field[..., None] * np.array(look.tint, dtype=np.float32))
    return np.minimum(lit, 255.0, out=lit).astype(np.uint8)
