"""Short texts and small pictures on the page, as HTML."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path

import numpy as np
from PIL import Image

from slf_common import cli


def note(text: str) -> str:
    """A line of text."""
    return f'<p class="note">{html.escape(text)}</p>'


def problem(text: str) -> str:
    """A line about a mistake."""
    return f'<p class="note problem" role="alert">{html.escape(text)}</p>'


def thumbnail(face: np.ndarray, text: str) -> str:
    """The 8x8 pixels of a face, uint8 [128, 128, 3] of 16x16 blocks, enlarged by repeating pixels, beside a line."""
    file = io.BytesIO()
    Image.fromarray(face[::16, ::16]).save(file, "png")
    data = base64.b64encode(file.getvalue()).decode()
    image = f'<img class="thumbnail" alt="the thumbnail, 8x8 pixels" src="data:image/png;base64,{data}">'
    return f'<div class="pair">{image}{note(text)}</div>'


def explain(error: Exception, folder: Path | None = None) -> str | None:
    """The one-line message of an expected error, without the folder of the visitor's files; else None."""
    line = cli.explain(error)
    return line if line is None or folder is None else line.replace(f"{folder}/", "")
