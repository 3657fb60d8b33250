"""Reading pictures: any file that Pillow knows, as upright 8-bit sRGB."""

from __future__ import annotations

import io
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from slf_common.errors import decoding

GROUND = (128, 128, 128)  # mid-grey, behind whatever is transparent
WIDE = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")  # grey of more than 8 bits
PROFILED = ("L", "RGB", "RGBA", "CMYK")  # modes that colour profiles describe
ORIENTATION = 0x0112  # EXIF's tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PictureError(Exception):
    """A file that cannot be read as a picture; says why in a few words, without the file's name."""


def read_picture(path: Path) -> np.ndarray:
    """A picture file as uint8 RGB [H, W, 3]: upright as its EXIF says, in sRGB; the first frame of an animation.

    Grey of 16 or 32 bits is scaled to 8; transparency is blended onto mid-grey. EXIF data and colour profiles that
    are broken are ignored. Raises `PictureError` if the file is damaged or no picture, `OSError` if the system cannot
    read it.
    """
    data = path.read_bytes()
    if not data:
        raise PictureError("the file is empty")
    with _pillow():
        image = Image.open(io.BytesIO(data))
        image.load()
    turn = TURNS.get(_orientation(image))
    image = _widened(image) if image.mode in WIDE else image
    with _pillow():
        image = _opaque(_srgb(image))
        return np.array(image if turn is None else image.transpose(turn))


def _pillow() -> AbstractContextManager[None]:
    return decoding(PictureError, "the image cannot be read")


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 (upright) where it cannot be told. After `load`: Pillow turns TIFFs itself."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:
        return 1


def _widened(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits as L, or LA where one value is transparent."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    grey = Image.fromarray(_eight_bits(values, image.mode))
    clear = image.info.get("transparency")
    if not isinstance(clear, int):
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))))


def _eight_bits(values: np.ndarray, mode: str) -> np.ndarray:
    """As uint8, from the least usual range that holds all: 0 to 1 or 255 (floats), 0 to 65535, else their own range."""
    low, high = values.min(), values.max()
    ranges = [1.0, 255.0, 65535.0] if mode == "F" else [65535.0]
    top = next((top for top in ranges if low >= 0 and high <= top), None)
    if top is None:
        values, top = values - low, max(high - low, np.finfo(float).tiny)
    return np.round(values / top * 255).astype(np.uint8)


def _srgb(image: Image.Image) -> Image.Image:
    """In sRGB, where the file has a colour profile that can be used."""
    if image.mode not in (*PROFILED, "LA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in PROFILED:
        return image
    try:
        return ImageCms.profileToProfile(
            image,
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            outputMode="RGBA" if image.mode == "RGBA" else "RGB",
        )
    except Exception:
        return image


def _opaque(image: Image.Image) -> Image.Image:
    """RGB, blended onto `GROUND` where it is transparent."""
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, (*GROUND, 255))
        image = Image.alpha_composite(ground, image.convert("RGBA"))
    return image.convert("RGB")
