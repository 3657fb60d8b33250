"""From frames to a face: find a box, widen it, cut the square out and scale it, in one resampling."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from PIL import Image

from extract import deepface
from extract.media import MediaError
from tfrecords.schema import FACE_SIZE

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels
# A frame, uint8 RGB [H, W, 3], to the box of its largest face and the face itself, float RGB in [0, 1].
Detector = Callable[[np.ndarray], "tuple[Box, np.ndarray] | None"]

# Shares of the box's height and width added on each side; the whole head is then in the picture.
MARGINS = (0.4, 0.5)
SKIP = "skip"
# OpenCV's cascade finds no face in one of six pictures that a face fills, though DeepFace puts black around them. A
# second look at them smaller, in mirror image, and with their edges drawn out finds three in ten of those.
SECOND_LOOKS = ("opencv",)
SIDES = (96, 128, 192)  # the longer, in pixels
LEAST = 0.4  # of the picture's shorter side: a face that fills it is not smaller


@dataclasses.dataclass(frozen=True)
class Face:
    """A face found in a clip: `picture` uint8 [128, 128, 3] for the record, and `close` float RGB [h, w, 3] in
    [0, 1], as the detector cut it, for estimating age, gender and ethnicity.
    """

    picture: np.ndarray
    close: np.ndarray


def check(settings: Mapping) -> None:
    """Raises `UserError` for a detector that does not exist; loads nothing."""
    if settings["detector"] != SKIP:
        deepface.check_detector(settings["detector"])


def load_detector(name: str) -> Detector:
    """The detector of that name, its weights loaded; `skip` takes the frame as it is. Raises `UserError`."""
    return whole_frame if name == SKIP else deepface.Detector(name)


def whole_frame(frame: np.ndarray) -> tuple[Box, np.ndarray]:
    """The box of a frame uint8 RGB [H, W, 3] that is already a picture of one face, and the frame in [0, 1]."""
    height, width = frame.shape[:2]
    return (0.0, 0.0, float(width), float(height)), frame / np.float32(255)


def find_face(frames: Iterable[np.ndarray], detector: Detector) -> Face:
    """The face in the first of the frames, uint8 RGB [H, W, 3], that has one. Raises `MediaError` if none has."""
    tried, missed = 0, []
    again = isinstance(detector, deepface.Detector) and detector.name in SECOND_LOOKS
    for frame in frames:
        tried += 1
        if found := detector(frame):
            box, close = found
            return Face(cut_face(frame, box), close)
        missed += [frame] if again else []
    for frame in missed:
        if box := look_again(frame, detector):
            left, top, right, bottom = map(round, box)
            return Face(cut_face(frame, box), frame[top:bottom, left:right] / np.float32(255))
    raise MediaError(
        f"no face in {tried} frame{'s' if tried > 1 else ''}; if the pictures are face crops already, use "
        f"--config.extract.detector={SKIP}"
    )


def look_again(frame: np.ndarray, detector: Detector) -> Box | None:
    """The box of the face in a frame uint8 RGB [H, W, 3] that it fills: looked for in small copies of it, upright and
    in mirror image, whose edges are drawn out by half their size on each side. The box lies within the frame.
    """
    height, width = frame.shape[:2]
    for side in SIDES:
        scale = min(1.0, side / max(height, width))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        small = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX))
        across, down = size[0] // 2, size[1] // 2
        for mirrored in (False, True):
            picture = np.pad(small[:, ::-1] if mirrored else small, ((down, down), (across, across), (0, 0)), "edge")
            if found := detector(picture):
                left, top, right, bottom = found[0]
                left, right = ((size[0] - x + across if mirrored else x - across) for x in (left, right))
                box = (
                    min(left, right) / scale,
                    (top - down) / scale,
                    max(left, right) / scale,
                    (bottom - down) / scale,
                )
                inside = _grow(box, (0.0, 0.0), (0.0, 0.0, float(width), float(height)))
                if min(inside[2] - inside[0], inside[3] - inside[1]) >= LEAST * min(height, width):
                    return inside
    return None


def cut_face(frame: np.ndarray, box: Box, margins: tuple[float, float] = MARGINS) -> np.ndarray:
    """The face in a box of a frame uint8 RGB [H, W, 3], as uint8 [128, 128, 3].

    The box grows by `margins` (shares of its height and width, on each side) as far as the frame goes; the largest
    square in its middle is scaled with antialiasing.
    """
    height, width = frame.shape[:2]
    square = _square(_grow(box, margins, (0.0, 0.0, float(width), float(height))))
    return np.asarray(Image.fromarray(frame).resize((FACE_SIZE, FACE_SIZE), Image.Resampling.LANCZOS, box=square))


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
