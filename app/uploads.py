"""Uploads: how they arrive, and how they are deleted."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from app.visits import Visit
from slf_common.errors import UserError

NO_FILE = "the upload was lost; try again"


def upload(label: str, **options: Any) -> gr.File:
    """A component for files of any type; which ones can be used is decided when they are read.

    Gradio would also download any address that a client sends: these are refused.
    """
    component: Any = gr.File(label=label, **options)
    component.async_move_resource_to_block_cache = _refuse_addresses
    return component


async def _refuse_addresses(path: str | Path | None) -> str | None:
    if str(path).startswith(("http:", "https:")):
        raise gr.Error("upload the file itself, not its address", print_exception=False)
    return None if path is None else str(path)  # Gradio has checked that it is an upload


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
