"""Shapes in fractions of the frame from its centre, x to the right and y down."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]

_TURN = np.linspace(0.0, 2 * np.pi, 48, endpoint=False)
CIRCLE = np.stack([np.cos(_TURN), np.sin(_TURN)], 1)  # points [48, 2] of the unit circle


class Pen:
    """Draws shapes on a square image, turned by `angle` (radians), scaled, then shifted."""

    def __init__(self, image: Image.Image, shift: tuple[float, float], angle: float, scale: float) -> None:
        self._draw = ImageDraw.Draw(image)
        self._unit = image.width * scale
        cos, sin = np.cos(angle), np.sin(angle)
        self._matrix = self._unit * np.array([[cos, sin], [-sin, cos]])
        self._origin = image.width * (0.5 + np.array(shift))

    def _place(self, points) -> list[float]:
        return (np.asarray(points) @ self._matrix + self._origin).ravel().tolist()

    def fill(self, points, colour: Colour) -> None:
        """Fill a polygon, points [n, 2]."""
        self._draw.polygon(self._place(points), fill=colour)

    def line(self, points, colour: Colour, width: float) -> None:
        """Draw an open line through points [n, 2], `width` in fractions of the frame."""
        pixels = max(1, round(width * self._unit))
        self._draw.line(self._place(points), fill=colour, width=pixels, joint="curve")

    def oval(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        """Fill an ellipse."""
        self.fill(oval(x, y, rx, ry), colour)


def oval(x: float, y: float, rx: float, ry: float, power: float = 1.0) -> np.ndarray:
    """Points [48, 2] of an ellipse; a power below 1 makes it squarer."""
    bent = CIRCLE if power == 1.0 else np.sign(CIRCLE) * np.abs(CIRCLE) ** power
    return bent * (rx, ry) + (x, y)


def arc(left: float, right: float, y: float, rise: float, count: int = 9) -> np.ndarray:
    """Points [count, 2] of a parabola from (left, y) to (right, y) whose middle lies `rise` up."""
    along = np.linspace(-1.0, 1.0, count)
    x = (left + right) / 2 + along * (right - left) / 2
    return np.stack([x, y - rise * (1 - along**2)], 1)


def mirror(points: np.ndarray, side: int) -> np.ndarray:
    """The points as given (side 1) or on the other side of the face (side -1)."""
    return points * (side, 1.0)


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """`share` of b in a."""
    return tuple(int(x + share * (y - x)) for x, y in zip(a, b, strict=True))
