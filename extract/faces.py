"""From frames to a face: find its box, widen it, crop a square and resize it, with a single resampling."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from PIL import Image

from extract import deepface
from extract.media import MediaError
from tfrecords.schema import FACE_SIZE

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels
# Maps a frame, uint8 RGB [H, W, 3], to the box of its largest face and the face itself, float RGB in [0, 1].
Detector = Callable[[np.ndarray], "tuple[Box, np.ndarray] | None"]

# Shares of the box's height and width added on each side, so that the whole head is visible.
MARGINS = (0.4, 0.5)
SKIP = "skip"
# OpenCV's cascade misses the face in one of six images that a face fills, although DeepFace pads them with black. A
# retry on smaller, mirrored and edge-padded copies finds three in ten of those.
RETRY_DETECTORS = ("opencv",)
RETRY_SIDES = (96, 128, 192)  # longer side of the copies, in pixels
MIN_RETRY_FACE = 0.4  # of the image's shorter side: a face that fills the image is not smaller


@dataclasses.dataclass(frozen=True)
class FaceCrop:
    """A face found in a clip: `image`, uint8 RGB [128, 128, 3], is stored in the record; `tight`, float RGB [h, w, 3]
    in [0, 1], is the detector's own crop, from which age, gender and ethnicity are estimated.
    """

    image: np.ndarray
    tight: np.ndarray


def check_detector(settings: Mapping) -> None:
    """Raises `UserError` for an unknown detector; loads nothing."""
    if settings["detector"] != SKIP:
        deepface.check_detector(settings["detector"])


def load_detector(name: str) -> Detector:
    """Loads a detector by name; `skip` uses the whole frame as the face. Raises `UserError`."""
    return whole_frame if name == SKIP else deepface.DeepFaceDetector(name)


def whole_frame(frame: np.ndarray) -> tuple[Box, np.ndarray]:
    """Returns the box of a whole frame uint8 RGB [H, W, 3], which already shows one face, and the frame in [0, 1]."""
    height, width = frame.shape[:2]
    return (0.0, 0.0, float(width), float(height)), frame / np.float32(255)


def find_face(frames: Iterable[np.ndarray], detector: Detector) -> FaceCrop:
    """Returns the face in the first frame, uint8 RGB [H, W, 3], that has one. Raises `MediaError` if none has."""
    tried, missed = 0, []
    retry = isinstance(detector, deepface.DeepFaceDetector) and detector.name in RETRY_DETECTORS
    for frame in frames:
        tried += 1
        if found := detector(frame):
            box, tight = found
            return FaceCrop(crop_face(frame, box), tight)
        missed += [frame] if retry else []
    for frame in missed:
        if retry_box := retry_detection(frame, detector):
            left, top, right, bottom = map(round, retry_box)
            return FaceCrop(crop_face(frame, retry_box), frame[top:bottom, left:right] / np.float32(255))
    raise MediaError(
        f"no face in {tried} frame{'s' if tried > 1 else ''}; if the images are face crops already, use "
        f"--config.extract.detector={SKIP}"
    )


def retry_detection(frame: np.ndarray, detector: Detector) -> Box | None:
    """Returns the box, within the frame, of a face that fills a frame uint8 RGB [H, W, 3]; None if there is none.

    Tries small copies of the frame, each as it is and mirrored, edge-padded by half their size on each side.
    """
    height, width = frame.shape[:2]
    for side in RETRY_SIDES:
        scale = min(1.0, side / max(height, width))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        small = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX))
        across, down = size[0] // 2, size[1] // 2
        for mirrored in (False, True):
            padded = np.pad(small[:, ::-1] if mirrored else small, ((down, down), (across, across), (0, 0)), "edge")
            if found := detector(padded):
                left, top, right, bottom = found[0]
                left, right = ((size[0] - x + across if mirrored else x - across) for x in (left, right))
                box = (
                    min(left, right) / scale,
                    (top - down) / scale,
                    max(left, right) / scale,
                    (bottom - down) / scale,
                )
                inside = _widen(box, (0.0, 0.0), (0.0, 0.0, float(width), float(height)))
                if min(inside[2] - inside[0], inside[3] - inside[1]) >= MIN_RETRY_FACE * min(height, width):
                    return inside
    return None


def crop_face(frame: np.ndarray, box: Box, margins: tuple[float, float] = MARGINS) -> np.ndarray:
    """Crops the face in a box of a frame uint8 RGB [H, W, 3] to uint8 [128, 128, 3].

    The box is widened by `margins` (shares of its height and width, on each side) within the frame; its largest
    central square is resized with antialiasing.
    """
    height, width = frame.shape[:2]
    square = _square(_widen(box, margins, (0.0, 0.0, float(width), float(height))))
    return np.asarray(Image.fromarray(frame).resize((FACE_SIZE, FACE_SIZE), Image.Resampling.LANCZOS, box=square))


def _widen(box: Box, margins: tuple[float, float], limit: Box) -> Box:
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
