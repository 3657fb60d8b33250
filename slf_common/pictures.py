"""Reading images of any format that Pillow supports, as upright 8-bit sRGB."""

from __future__ import annotations

import io
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from slf_common.errors import decoding

BACKGROUND = (128, 128, 128)  # mid-grey, shown where an image is transparent
DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")  # greyscale modes of more than 8 bits
PROFILED = ("L", "RGB", "RGBA", "CMYK")  # modes that colour profiles describe
ORIENTATION = 0x0112  # the EXIF tag
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
    """A file that cannot be read as an image. The message is the reason, without the file name."""


def read_picture(path: Path) -> np.ndarray:
    """Reads an image file as uint8 RGB [H, W, 3] in sRGB, turned upright by its EXIF data.

    16- and 32-bit greyscale is scaled to 8 bits; transparency is blended onto mid-grey; an animation gives its first
    frame. Broken EXIF data and colour profiles are ignored. Raises `PictureError` if the file is damaged or not an
    image, `OSError` if the system cannot read it.
    """
    data = path.read_bytes()
    if not data:
        raise PictureError("the file is empty")
    with _pillow():
        image: Image.Image = Image.open(io.BytesIO(data))
        image.load()
    turn = TURNS.get(_orientation(image))
    if image.mode in DEEP:
        image = _to_8_bit_grey(image)
    with _pillow():
        image = _to_opaque(_to_srgb(image))
        return np.array(image if turn is None else image.transpose(turn))


def _pillow() -> AbstractContextManager[None]:
    return decoding(PictureError, "the image cannot be read")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) if it cannot be read. Call after `load`, which turns TIFFs itself."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:
        return 1


def _to_8_bit_grey(image: Image.Image) -> Image.Image:
    """Converts deep greyscale to L, or to LA if one grey value is marked as transparent."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    grey = Image.fromarray(_to_uint8(values, image.mode))
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return grey
    alpha = Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))
    return Image.merge("LA", (grey, alpha))


def _to_uint8(values: np.ndarray, mode: str) -> np.ndarray:
    """Scales to uint8 from the smallest usual range that contains all values: 0 to 1 or 255 (floats), or 0 to 65535.

    Values outside of these are scaled from their own range.
    """
    low, high = values.min(), values.max()
    ranges = [1.0, 255.0, 65535.0] if mode == "F" else [65535.0]
    top = next((top for top in ranges if low >= 0 and high <= top), None)
    if top is None:
        values, top = values - low, max(high - low, np.finfo(float).tiny)
    return np.round(values / top * 255).astype(np.uint8)


def _to_srgb(image: Image.Image) -> Image.Image:
    """Converts to sRGB if the file has a usable colour profile."""
    if image.mode not in (*PROFILED, "LA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in PROFILED:
        return image
    try:
        converted = ImageCms.profileToProfile(
            image,
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            outputMode="RGBA" if image.mode == "RGBA" else "RGB",
        )
    except Exception:
        return image
    return converted or image


def _to_opaque(image: Image.Image) -> Image.Image:
    """Converts to RGB; transparent pixels are blended onto `BACKGROUND`."""
    if image.has_transparency_data:
        background = Image.new("RGBA", image.size, (*BACKGROUND, 255))
        image = Image.alpha_composite(background, image.convert("RGBA"))
    return image.convert("RGB")
