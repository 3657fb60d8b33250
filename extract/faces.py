"""From a frame to a face: find a box, widen it, cut the square out and scale it, in one resampling."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from tfrecords.cli import UserError
from tfrecords.schema import FACE_SIZE

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels

# Shares of the box's height and width added on each side; the whole head is then in the picture.
MARGINS = (0.4, 0.5)


def whole_frame(frame: np.ndarray) -> Box:
    """The box of a frame [H, W, 3] that is already a picture of one face."""
    height, width = frame.shape[:2]
    return 0.0, 0.0, float(width), float(height)


# A detector finds the box of the main face in a frame, uint8 RGB [H, W, 3].
DETECTORS: dict[str, Callable[[np.ndarray], Box]] = {"skip": whole_frame}


def find_detector(name: str) -> Callable[[np.ndarray], Box]:
    """The detector of that name; raises `UserError` naming the valid ones."""
    if name not in DETECTORS:
        raise UserError(f"config.extract.detector={name}: no such detector; choose one of: {', '.join(DETECTORS)}")
    return DETECTORS[name]


def crop_face(frame: np.ndarray, detector: str, margins: tuple[float, float] = MARGINS) -> np.ndarray:
    """The face in a frame uint8 RGB [H, W, 3], as uint8 [128, 128, 3].

    The detector's box grows by `margins` (shares of its height and width, on each side) as far as the frame
    goes; the largest square in its middle is scaled with antialiasing. Raises `UserError` for an unknown detector.
    """
    box = _square(_grow(find_detector(detector)(frame), margins, whole_frame(frame)))
    face = Image.fromarray(frame).resize((FACE_SIZE, FACE_SIZE), Image.Resampling.LANCZOS, box=box)
    return np.asarray(face)


def _grow(box: Box, margins: tuple[float, float], limit: Box) -> Box:
    left, top, right, bottom = box
    down, across = margins[0] * (bottom - top), margins[1] * (right - left)
    return (
        max(left - across, limit[0]),
        max(top - down, limit[1]),
        min(right + across, limit[2]),
        min(bottom + down, limit[3]),
    )


def _square(box: Box) -> Box:
    left, top, right, bottom = box
    side = min(right - left, bottom - top)
    x, y = (left + right - side) / 2, (top + bottom - side) / 2
    return x, y, x + side, y + side
