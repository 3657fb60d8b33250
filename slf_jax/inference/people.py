"""Chooses the clips to sample, and reads thumbnails from pictures."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from slf_common.errors import UserError
from slf_common.pictures import PictureError, read_picture
from tfrecords.reader import Clips
from tfrecords.schema import FACE_SIZE


def person_number(clip_id: str) -> int:
    """The number from which a clip's noise is derived; it only depends on the clip's id."""
    return zlib.crc32(clip_id.encode()) & 0x7FFFFFFF


def choose_people(clips: Clips, count: int) -> list[dict]:
    """The first clip of each of the first `count` speakers."""
    first: dict[str, int] = {}
    for i, (_, speaker) in enumerate(clips.names()):
        first.setdefault(speaker, i)
        if len(first) == count:
            break
    return [clips[i] for i in first.values()]


def find_clips(clips: Clips, ids: Sequence[str], people: int) -> list[dict]:
    """The clips with these ids, or without ids the first clip of each of the first `people` speakers.

    Raises `UserError` for an id that the split does not have.
    """
    if not ids:
        return choose_people(clips, people)
    for clip_id in ids:
        if clips.locate(clip_id) is None:
            hint = "; give several ids with spaces between them, --clips ID ID" if "," in clip_id else ""
            raise UserError(f"{clips.directory}: no clip {clip_id!r} among the {len(clips)} of this split{hint}")
    return [clips.find(clip_id) for clip_id in ids]


def read_thumbnail(path: Path) -> np.ndarray:
    """A picture's centre square as a face [128, 128, 3] uint8 with the same 8x8 averages. Raises `UserError`."""
    try:
        picture = read_picture(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except PictureError as error:
        raise UserError(f"{path}: {error}") from None
    return np.asarray(ImageOps.fit(Image.fromarray(picture), (FACE_SIZE, FACE_SIZE), Image.Resampling.BOX))
