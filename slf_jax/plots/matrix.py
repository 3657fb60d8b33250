"""Matrices: the 256x768 features of one clip, confusion matrices, and heat maps over two guidance scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from slf_jax.plots.pyplot import import_pyplot, save_figure


def feature_matrix(matrix: np.ndarray, mask: np.ndarray, blocks: Sequence[dict], title: str, path: Path) -> None:
    """Draws a [256, 768] feature matrix with constituents labelled and masked rows in grey."""
    plt = import_pyplot()
    figure, axes = plt.subplots(figsize=(12, 9), layout="constrained")
    shown = np.ma.masked_where(~np.broadcast_to(mask[:, None], matrix.shape), matrix)
    colours = plt.get_cmap("RdBu_r").with_extremes(bad="0.85")
    picture = axes.imshow(shown, aspect="auto", cmap=colours, vmin=-3, vmax=3, interpolation="nearest")
    for block in blocks:
        axes.axhline(block["start"] - 0.5, color="0.4", lw=0.4)
    # The labels of single rows would overlap: they are spread out on the right.
    names = [b["name"] + ("" if mask[b["start"] : b["start"] + b["rows"]].any() else " (missing)") for b in blocks]
    large = [(b, name) for b, name in zip(blocks, names, strict=True) if b["rows"] > 1]
    singles = [(b, name) for b, name in zip(blocks, names, strict=True) if b["rows"] == 1]
    axes.set_yticks(
        [b["start"] + b["rows"] / 2 - 0.5 for b, _ in large], [f"{name}\n{b['rows']} rows" for b, name in large]
    )
    for y, (block, name) in zip(_spread([b["start"] for b, _ in singles], 9), singles, strict=True):
        axes.annotate(
            name, (767, block["start"]), (790, y), fontsize=9, va="center",
            annotation_clip=False, arrowprops={"arrowstyle": "-", "lw": 0.5, "color": "0.4"},
        )  # fmt: skip
    axes.set_xlabel("feature (standardised, clipped to ±10; colours to ±3; grey: masked)")
    axes.set_title(title)
    figure.colorbar(picture, ax=axes, location="bottom", shrink=0.4, aspect=40)
    save_figure(figure, path)


def confusions(tables: Mapping[str, tuple[Sequence[str], np.ndarray]], path: Path) -> None:
    """Draws confusion matrices, given by class names and counts [n, n + 1], the last column for no face found."""
    if not tables:
        return
    plt = import_pyplot()
    figure, panels = plt.subplots(1, len(tables), figsize=(5.5 * len(tables), 5), layout="constrained", squeeze=False)
    for axes, (kind, (names, counts)) in zip(panels[0], tables.items(), strict=True):
        shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (row, column), count in np.ndenumerate(counts):
            if count:
                ink = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, count, ha="center", va="center", color=ink, fontsize=8)
        axes.set_xticks(range(len(names) + 1), [*names, "no face"], rotation=45, ha="right", fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set(title=kind, xlabel="estimated from the generated face", ylabel="true")
    save_figure(figure, path)


def heat_maps(tables: Mapping[str, Sequence[float]], axes: Mapping[str, Sequence[str]], path: Path) -> None:
    """Draws one heat map for each measure.

    Args:
      tables: values by title of the measure, for all combinations of `axes`, whose last one varies fastest.
      axes: the values along each axis by its title: down, and across if there are two.
    """
    plt = import_pyplot()
    (down, rows), *others = axes.items()
    across, columns = others[0] if others else ("", [""])
    size = (1.6 + 0.75 * len(columns)) * len(tables), 1.8 + 0.5 * len(rows)
    figure, panels = plt.subplots(1, len(tables), figsize=size, layout="constrained", squeeze=False)
    for panel, (title, values) in zip(panels[0], tables.items(), strict=True):
        table = np.reshape(values, (len(rows), len(columns)))
        picture = panel.imshow(table, cmap="viridis", aspect="auto")
        for (row, column), value in np.ndenumerate(table):
            ink = "white" if picture.norm(value) < 0.6 else "black"
            panel.text(column, row, f"{value:.1f}", ha="center", va="center", color=ink, fontsize=8)
        panel.set(title=title, xlabel=across, ylabel=down)
        panel.set_xticks(range(len(columns)), columns)
        panel.set_yticks(range(len(rows)), rows)
    save_figure(figure, path)


def _spread(positions: Sequence[float], distance: float) -> list[float]:
    """Ascending positions, moved up so that neighbours are at least `distance` apart."""
    spread: list[float] = []
    for position in positions:
        spread.append(max(position, spread[-1] + distance) if spread else position)
    return spread
