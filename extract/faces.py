"""From frames to a face: find its box, widen it, crop a square and resize it, with a single resampling.

Several detectors can form a chain, as in `dlib,centerface,opencv`: the first of them that finds a face in any of a
clip's frames is used, and noted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
from PIL import Image

from extract import deepface
from extract.media import MediaError
from slf_common.errors import UserError
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
    """A face found in a clip.

    Attributes:
      image: uint8 RGB [128, 128, 3], with margins; it is stored in the record.
      tight: float RGB [h, w, 3] in [0, 1], aligned, as DeepFace's networks need it.
      near: uint8 RGB [h, w, 3], the frame around the face, neither scaled nor turned.
      box: of the face within `near`.
      detector: which one of the chain found it.
    """

    image: np.ndarray
    tight: np.ndarray
    near: np.ndarray
    box: Box
    detector: str


def split_chain(text: str) -> tuple[str, ...]:
    """Splits `dlib, opencv` into the names of the detectors."""
    return tuple(name.strip() for name in text.split(","))


def check_detector(settings: Mapping) -> None:
    """Raises `UserError` for an unknown or repeated detector, or one after `skip`; loads nothing."""
    names = split_chain(settings["detector"])
    for name in names:
        if name != SKIP:
            deepface.check_detector(name)
    if len(set(names)) < len(names) or SKIP in names[:-1]:
        wrong = f"{SKIP} uses any frame, so it must be the last" if SKIP in names[:-1] else "a detector is repeated"
        raise UserError(f"config.extract.detector={settings['detector']}: {wrong}")


def load_detectors(chain: str, left_out: dict[str, str] | None = None) -> dict[str, Detector]:
    """Loads the detectors of a chain by name; `skip` uses the whole frame as the face.

    A detector that cannot be loaded is left out, and `left_out` receives the reason. Raises `UserError` if no detector
    can be loaded, or if `left_out` is not given.
    """
    found: dict[str, Detector] = {}
    for name in split_chain(chain):
        if name == SKIP:
            if left_out and not found:
                break
            found[name] = whole_frame
            continue
        try:
            found[name] = deepface.DeepFaceDetector(name)
        except UserError as error:
            if left_out is None:
                raise
            left_out[name] = str(error)
    if not found:
        raise UserError("; ".join((left_out or {}).values()))
    return found


def describe_detectors(detectors: Mapping[str, Detector]) -> dict[str, str]:
    """Describes a chain for the dataset's metadata: `detector` as in a config, then each one's versions and weights.

    The detector that found the face of a clip is in its shard's summary, and the counts in the metadata.
    """
    found = {"detector": ",".join(detectors)}
    for name, detector in detectors.items():
        if isinstance(detector, deepface.DeepFaceDetector):
            retry = f"second looks at {', '.join(map(str, RETRY_SIDES))} pixels" if name in RETRY_DETECTORS else ""
            found[name] = ", ".join(filter(None, [detector.provenance, retry]))
    return found


def whole_frame(frame: np.ndarray) -> tuple[Box, np.ndarray]:
    """Returns the box of a whole frame uint8 RGB [H, W, 3], which already shows one face, and the frame in [0, 1]."""
    height, width = frame.shape[:2]
    return (0.0, 0.0, float(width), float(height)), frame / np.float32(255)


def find_face(frames: Iterable[np.ndarray], detectors: Mapping[str, Detector]) -> FaceCrop:
    """Returns the face in the first frame, uint8 RGB [H, W, 3], that has one, by the first detector that finds any.

    Raises `MediaError` if none does.
    """
    seen: list[np.ndarray] = []
    remaining = _remember(frames, seen)  # decoded only as far as the first detector searches
    for name, detector in detectors.items():
        retry = isinstance(detector, deepface.DeepFaceDetector) and name in RETRY_DETECTORS
        if found := _search(remaining, detector, retry):
            return _crop(*found, name)
        remaining = iter(seen)
    raise MediaError(
        f"no face in {len(seen)} frame{'s' if len(seen) > 1 else ''}; if the images are face crops already, add "
        f"{SKIP}, as in --config.extract.detector={','.join([*detectors, SKIP])}"
    )


def _remember(frames: Iterable[np.ndarray], seen: list[np.ndarray]) -> Iterator[np.ndarray]:
    for frame in frames:
        seen.append(frame)
        yield frame


def _search(frames: Iterable[np.ndarray], detector: Detector, retry: bool) -> tuple[np.ndarray, Box, np.ndarray] | None:
    """Returns the first frame with a face, the face's box, and the face in [0, 1]."""
    missed = []
    for frame in frames:
        if found := detector(frame):
            return (frame, *found)
        missed.append(frame)
    for frame in missed if retry else []:
        if box := retry_detection(frame, detector):
            left, top, right, bottom = map(round, box)
            return frame, box, frame[top:bottom, left:right] / np.float32(255)
    return None


def _crop(frame: np.ndarray, box: Box, tight: np.ndarray, detector: str) -> FaceCrop:
    limit = (0.0, 0.0, float(frame.shape[1]), float(frame.shape[0]))
    left, top, right, bottom = map(round, _widen(box, (1.0, 1.0), limit))
    within = (box[0] - left, box[1] - top, box[2] - left, box[3] - top)
    return FaceCrop(crop_face(frame, box), tight, frame[top:bottom, left:right].copy(), within, detector)


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
