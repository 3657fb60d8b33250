"""Draws shapes given in fractions of the frame from its centre, x to the right and y down."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Points = np.ndarray | Sequence[tuple[float, float]]

_TURN = np.linspace(0.0, 2 * np.pi, 48, endpoint=False)
CIRCLE = np.stack([np.cos(_TURN), np.sin(_TURN)], 1)  # points [48, 2] of the unit circle


class Canvas:
    """Draws shapes on a square image, rotated by `angle` (radians), scaled, then shifted."""

    def __init__(self, image: Image.Image, shift: tuple[float, float], angle: float, scale: float) -> None:
        self._draw = ImageDraw.Draw(image)
        self._unit = image.width * scale
        cos, sin = np.cos(angle), np.sin(angle)
        self._matrix = self._unit * np.array([[cos, sin], [-sin, cos]])
        self._origin = image.width * (0.5 + np.array(shift))

    def _to_pixels(self, points: Points) -> list[float]:
        return (np.asarray(points) @ self._matrix + self._origin).ravel().tolist()

    def fill(self, points: Points, colour: Colour) -> None:
        """Fills a polygon, points [n, 2]."""
        self._draw.polygon(self._to_pixels(points), fill=colour)

    def line(self, points: Points, colour: Colour, width: float) -> None:
        """Draws an open line through points [n, 2], `width` in fractions of the frame."""
        pixels = max(1, round(width * self._unit))
        self._draw.line(self._to_pixels(points), fill=colour, width=pixels, joint="curve")

    def oval(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        """Fills an ellipse with centre (x, y) and radii (rx, ry)."""
        self.fill(oval(x, y, rx, ry), colour)


def oval(x: float, y: float, rx: float, ry: float, power: float = 1.0) -> np.ndarray:
    """Returns points [48, 2] of an ellipse; a power below 1 makes it squarer."""
    bent = CIRCLE if power == 1.0 else np.sign(CIRCLE) * np.abs(CIRCLE) ** power
    return bent * (rx, ry) + (x, y)


def arc(left: float, right: float, y: float, rise: float, count: int = 9) -> np.ndarray:
    """Returns points [count, 2] of a parabola from (left, y) to (right, y) that rises by `rise` in the middle."""
    along = np.linspace(-1.0, 1.0, count)
    x = (left + right) / 2 + along * (right - left) / 2
    return np.stack([x, y - rise * (1 - along**2)], 1)


def mirror(points: np.ndarray, side: int) -> np.ndarray:
    """Returns the points unchanged (side 1) or mirrored to the other side of the face (side -1)."""
    return points * (side, 1.0)


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """Mixes two colours with a `share` of b."""
    red, green, blue = (int(x + share * (y - x)) for x, y in zip(a, b, strict=True))
    return red, green, blue
