"""The visible mark of synthetic images."""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image, ImageDraw, ImageFont

TEXT, SIZE, MARGIN = "SYNTHETIC", 9, 3  # font size and margin in pixels
PAPER, OPACITY = 0.0, 0.55  # of the box behind the text


def mark(images: np.ndarray) -> np.ndarray:
    """Writes "SYNTHETIC" into the upper right corner of images, uint8 [..., H, W, 3]; returns marked copies."""
    text = _text()
    height, width = text.shape
    marked = images.copy()
    corner = marked[..., :height, -width:, :]
    shaded = (1 - OPACITY) * corner + OPACITY * PAPER
    corner[...] = np.round(shaded + text[..., None] * (255 - shaded))
    return marked


@functools.cache
def _text() -> np.ndarray:
    """Coverage of the text with its margin: float [height, width] from 0 to 1."""
    font = ImageFont.load_default(SIZE)
    left, top, right, bottom = (round(edge) for edge in font.getbbox(TEXT))
    page = Image.new("L", (right - left + 2 * MARGIN, bottom - top + 2 * MARGIN))
    ImageDraw.Draw(page).text((MARGIN - left, MARGIN - top), TEXT, 255, font)
    return np.asarray(page, np.float32) / 255
