"""Grids of images, and PNG and JPEG files."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from slf_common.files import write_atomically

INK, PAPER, GAP = (32, 32, 32), (255, 255, 255), 2


def enlarge(images: np.ndarray, size: int) -> np.ndarray:
    """Enlarges [..., h, w, 3] to [..., size, size, 3] by repeating pixels."""
    times = size // images.shape[-2]
    return images.repeat(times, -3).repeat(times, -2)


def stack_columns(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Stacks columns of images [R, h, w, 3] as [R, C, H, W, 3]; small ones are enlarged to the largest size."""
    size = max(images.shape[1] for images in columns.values())
    return np.stack([enlarge(np.asarray(images), size) for images in columns.values()], 1)


def image_grid(columns: Mapping[str, np.ndarray], path: Path, rows: Sequence[str] = ()) -> None:
    """Writes columns of uint8 images [R, h, w, 3] as one PNG, their names above, the rows' names on the left."""
    save_png(draw_grid(columns, rows), path)


def draw_grid(columns: Mapping[str, np.ndarray], rows: Sequence[str] = ()) -> Image.Image:
    """Draws the picture of `image_grid`."""
    images, font = stack_columns(columns), ImageFont.load_default(12)
    height, width = images.shape[2] + GAP, images.shape[3] + GAP
    left, top = (12 + max(int(font.getlength(r)) for r in rows) if rows else 0), 20
    page = Image.new("RGB", (left + images.shape[1] * width, top + images.shape[0] * height), PAPER)
    draw = ImageDraw.Draw(page)
    for c, name in enumerate(columns):
        draw.text((left + c * width + width // 2, top // 2), name, INK, font, anchor="mm")
    for r, name in enumerate(rows):
        draw.text((6, top + r * height + height // 2), name, INK, font, anchor="lm")
    for (r, c), _ in np.ndenumerate(images[:, :, 0, 0, 0]):
        page.paste(Image.fromarray(images[r, c]), (left + c * width, top + r * height))
    return page


def save_png(picture: Image.Image, path: Path, notes: Mapping[str, object] | None = None) -> None:
    """Writes a PNG atomically, with `notes` as its text chunks."""
    text, file = PngInfo(), io.BytesIO()
    for key, value in (notes or {}).items():
        text.add_text(key, str(value))
    picture.save(file, "png", optimize=True, pnginfo=text)
    write_atomically(path, file.getvalue())


def jpeg(path: Path, width: int) -> tuple[bytes, tuple[int, int]]:
    """Converts a picture file to a JPEG of at most `width` pixels width; also returns its (width, height).

    Raises `OSError` if the file is damaged or not a picture.
    """
    try:
        with Image.open(path) as file:
            picture = file.convert("RGB")
    except SyntaxError as error:  # raised by Pillow for some damaged PNGs
        raise OSError(str(error)) from error
    picture.thumbnail((width, 4 * width), Image.Resampling.LANCZOS)
    return encode_jpeg(picture), picture.size


def encode_jpeg(picture: Image.Image) -> bytes:
    """Encodes an RGB picture as a JPEG."""
    encoded = io.BytesIO()
    picture.save(encoded, "jpeg", quality=85, optimize=True, progressive=True)
    return encoded.getvalue()
