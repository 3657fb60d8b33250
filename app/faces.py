"""Crops the face in a picture as `extract` crops those of a dataset."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slf_common.errors import UserError

if TYPE_CHECKING:
    from extract.faces import Detector

DEFAULT = "opencv"  # needs no download; for systems whose training data were cropped already


def crop(path: Path, provenance: Mapping[str, Any]) -> np.ndarray:
    """Returns the largest face of a picture, uint8 RGB [128, 128, 3], with the margins of the training data.

    `provenance`: of the training data; its detectors are used, if it has any. Raises `UserError`.
    """
    from extract.faces import SKIP, find_face, split_chain
    from extract.media import MediaError, read_image

    names = split_chain(provenance.get("faces", {}).get("detector", SKIP))
    chain = ",".join(name for name in names if name != SKIP) or DEFAULT
    try:
        return find_face([read_image(path)], _detectors(chain)).image
    except MediaError as error:
        reason = str(error).partition(";")[0]
        raise UserError(f"{path}: {reason}; give a picture of one face, or use its centre square") from None


@functools.cache
def _detectors(chain: str) -> dict[str, Detector]:
    from extract import deepface
    from extract.faces import load_detectors

    # DeepFace has one engine per process; this variable is its own.
    deepface.start({"home": "", "engine": os.environ.get("DEEPFACE_BACKEND_ENGINE", "pytorch")})
    return load_detectors(chain)
