"""What differs between clips of one person: pose, light, background, clothes, expression."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from extract.talkers.canvas import Colour

SIZE = 160  # height and width of a frame in pixels
CLOTHES = ((52, 62, 88), (122, 44, 48), (150, 150, 146), (66, 92, 70))
_LIGHT_GRID = 8  # points of the grid of light along a side


def _smooth_steps() -> np.ndarray:
    """Returns weights [160, 8] that interpolate the grid of light with smooth steps."""
    position = np.linspace(0.0, _LIGHT_GRID - 1.0, SIZE)
    distance = np.clip(np.abs(position[:, None] - np.arange(_LIGHT_GRID)), 0.0, 1.0)
    return (1.0 - distance**2 * (3.0 - 2.0 * distance)).astype(np.float32)


_INTERPOLATION = _smooth_steps()


@dataclass(frozen=True)
class Scene:
    """What differs between clips of one person."""

    shift: tuple[float, float]  # fractions of the frame
    angle: float  # radians
    scale: float
    background: Colour
    clothes: int
    light: tuple[tuple[float, ...], ...]  # brightness on a coarse grid
    tint: tuple[float, float, float]  # colour of the light
    smile: float  # by which the corners of the mouth rise, fractions of the frame


def draw_scene(rng: np.random.Generator) -> Scene:
    """Samples the scene of one clip; geometry varies little, colours vary a lot."""
    hue = rng.uniform(70.0, 200.0) + rng.uniform(-35.0, 35.0, 3)
    return Scene(
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
    """Samples the grid of light: overall brightness, a gradient, and soft shadows of a thumbnail pixel's size.

    The shadows make a dark pixel of the thumbnail ambiguous: it may be an eyebrow or only a shadow.
    """
    across, down = np.meshgrid(*[np.linspace(-1.0, 1.0, _LIGHT_GRID)] * 2)
    slope = rng.uniform(-0.12, 0.12, 2)
    shadows = rng.normal(0.0, 0.075, (_LIGHT_GRID, _LIGHT_GRID))
    field = rng.uniform(0.85, 1.08) * (1.0 + slope[0] * across + slope[1] * down + shadows)
    return tuple(tuple(row) for row in field.tolist())


def apply_light(pixels: np.ndarray, scene: Scene) -> np.ndarray:
    """Multiplies frames [n, 160, 160, 3] by a tinted gain that changes smoothly across them; uint8."""
    field = _INTERPOLATION @ np.array(scene.light, dtype=np.float32) @ _INTERPOLATION.T
    lit = pixels * (field[..., None] * np.array(scene.tint, dtype=np.float32))
    return np.minimum(lit, 255.0, out=lit).astype(np.uint8)
