"""Pictures: arrays in, PNG out."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from tfrecords.writer import write_atomically

INK, PAPER, GAP = (32, 32, 32), (255, 255, 255), 2


def enlarge(images: np.ndarray, size: int) -> np.ndarray:
    """Repeats the pixels of [..., h, w, 3] up to [..., size, size, 3], so that each can be seen."""
    times = size // images.shape[-2]
    return images.repeat(times, -3).repeat(times, -2)


def image_grid(images: np.ndarray, path: Path, columns: Sequence[str], rows: Sequence[str] = ()) -> None:
    """Writes uint8 images [R, C, H, W, 3] as one picture, its columns named on top and its rows at the left."""
    font = ImageFont.load_default(12)
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
    save_png(page, path)


def save_png(picture: Image.Image, path: Path, notes: Mapping[str, object] | None = None) -> None:
    """Writes a PNG whole or not at all, with `notes` as its text chunks."""
    text, file = PngInfo(), io.BytesIO()
    for key, value in (notes or {}).items():
        text.add_text(key, str(value))
    picture.save(file, "png", optimize=True, pnginfo=text)
    write_atomically(path, file.getvalue())


def feature_matrix(matrix: np.ndarray, mask: np.ndarray, blocks: Sequence[dict], title: str, path: Path) -> None:
    """Draws a [256, 768] feature matrix; constituents are named, masked rows are grey."""
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(12, 9), layout="constrained")
    shown = np.ma.masked_where(~np.broadcast_to(mask[:, None], matrix.shape), matrix)
    colours = plt.get_cmap("RdBu_r").with_extremes(bad="0.85")
    picture = axes.imshow(shown, aspect="auto", cmap=colours, vmin=-3, vmax=3, interpolation="nearest")
    for block in blocks:
        axes.axhline(block["start"] - 0.5, color="0.4", lw=0.4)
    # Single rows would print their names over each other: they are spread below the big blocks.
    names = [b["name"] + ("" if mask[b["start"] : b["start"] + b["rows"]].any() else " (missing)") for b in blocks]
    large = [(b, name) for b, name in zip(blocks, names, strict=True) if b["rows"] > 1]
    singles = [(b, name) for b, name in zip(blocks, names, strict=True) if b["rows"] == 1]
    axes.set_yticks(
        [b["start"] + b["rows"] / 2 - 0.5 for b, _ in large], [f"{name}\n{b['rows']} rows" for b, name in large]
    )
    for place, (block, name) in zip(_spread([b["start"] for b, _ in singles], 9), singles, strict=True):
        axes.annotate(
            name, (767, block["start"]), (790, place), fontsize=9, va="center",
            annotation_clip=False, arrowprops={"arrowstyle": "-", "lw": 0.5, "color": "0.4"},
        )  # fmt: skip
    axes.set_xlabel("feature (standardised, clipped to ±10; colours to ±3; grey: masked)")
    axes.set_title(title)
    figure.colorbar(picture, ax=axes, location="bottom", shrink=0.4, aspect=40)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _spread(places: Sequence[float], least: float) -> list[float]:
    """The places in order, pushed apart to at least `least`."""
    spread: list[float] = []
    for place in places:
        spread.append(max(place, spread[-1] + least) if spread else place)
    return spread


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
