"""Uploads: how they arrive, and how they are deleted."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
from PIL import Image

from app.visits import Visit
from slf_common.errors import UserError

NO_FILE = "the upload was lost; try again"


class Upload(gr.File):
    """A file that the visitor uploads: Gradio would also download any address that a client sends."""

    is_template = True  # looks like gr.File

    async def async_move_resource_to_block_cache(self, url_or_file_path: str | Path | None) -> str | None:
        if str(url_or_file_path).startswith(("http:", "https:")):
            raise gr.Error("upload the file itself, not its address", print_exception=False)
        return None if url_or_file_path is None else str(url_or_file_path)


def receive(visit: Visit, kind: str, upload: str | None) -> None:
    """Moves an upload to the visit's folder. Raises `UserError` if it is gone."""
    folder = visit.folder / kind
    shutil.rmtree(folder, ignore_errors=True)
    if not upload or not Path(upload).exists():
        raise UserError(NO_FILE)
    folder.mkdir()
    os.replace(upload, folder / Path(upload).name)


@contextlib.contextmanager
def received(visit: Visit, kind: str) -> Iterator[Path]:
    """The received file, which is deleted afterwards. Raises `UserError` if there is none."""
    folder = visit.folder / kind
    try:
        path = next(iter(folder.iterdir()), None) if folder.exists() else None
        if path is None:
            raise UserError(NO_FILE)
        yield path
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_pixels(path: Path, megapixels: float) -> None:
    """Raises `UserError` if a picture is too large; other files are judged by who reads them."""
    try:
        with Image.open(path) as picture:
            width, height = picture.size
    except Exception:  # Pillow raises almost anything for damaged files
        return
    if width * height > megapixels * 1e6:
        raise UserError(f"{path}: {width}x{height} pixels; give a picture of at most {megapixels:g} megapixels")
