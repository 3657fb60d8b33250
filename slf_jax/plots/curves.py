"""Curves: training metrics as SVG, recall by rank and by guidance scale as PNG."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slf_jax.plots.pyplot import import_pyplot, save_figure

CHART_SIZE, CHART_POINTS = (5.6, 3.0), 600  # inches; approximate maximum number of points drawn per curve
CHART_INK = "#010203"  # placeholder that is replaced by `currentColor`, so that charts take the page's text colour
CHART_STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "slf_jax", "font.size": 9, "legend.fontsize": 9,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": CHART_INK, "text.color": CHART_INK,
    "xtick.color": CHART_INK, "ytick.color": CHART_INK, "axes.labelcolor": CHART_INK,
    "axes.grid": True, "grid.color": CHART_INK, "grid.alpha": 0.12, "grid.linewidth": 0.6,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Curve:
    """One curve of a chart: `y` over `x`, both [n]. Values that are not finite are left out.

    Attributes:
      name: in the legend; "": none.
      smooth: draw the values faintly, and their running mean (`smoothed`) on top.
      mark_minimum: draw a dot for each value and a circle around the minimum, whose value is in the legend.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    colour: str
    smooth: bool = False
    dashed: bool = False
    mark_minimum: bool = False


def curves(
    lines: Sequence[Curve], *, log: bool | None = None, limits: tuple[float | None, float | None] = (None, None),
    marks: Sequence[float] = (),
) -> str:  # fmt: skip
    """Draws curves over steps as an `<svg>` element for a page, whose text colour and font it takes.

    Args:
      log: whether the y axis is logarithmic; None: if the values span more than a factor of ten.
      limits: of the y axis; None: fitted to the values.
      marks: steps at which to draw a dotted line.
    """
    lines = [_finite(line, positive=bool(log)) for line in lines]
    values = np.concatenate([line.y for line in lines])
    if log is None:
        log = bool(values.size > 0 and values.min() > 0 and values.max() > 10 * values.min())
    plt = import_pyplot()
    with plt.rc_context(CHART_STYLE):
        figure, axes = plt.subplots(figsize=CHART_SIZE, layout="constrained")
        for step in marks:
            axes.axvline(step, color=CHART_INK, alpha=0.5, lw=0.8, ls=":")
        for line in lines:
            _draw(axes, line)
        _format_axes(axes, log, limits, has_names=any(line.name and line.x.size for line in lines))
        file = io.StringIO()
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))  # it would contain URLs and the date
        figure.savefig(file, format="svg", transparent=True, metadata=no_metadata)
        plt.close(figure)
    svg = file.getvalue()
    return svg[svg.index("<svg") :].replace(CHART_INK, "currentColor")


def smoothed(values: np.ndarray) -> np.ndarray:
    """Exponential running mean of finite values [n], with a half-life of n / 30 values, at least two."""
    keep = 0.5 ** (1 / max(2, len(values) / 30))
    total, weight, means = 0.0, 0.0, np.empty(len(values))
    for i, value in enumerate(values):
        total, weight = keep * total + value, keep * weight + 1
        means[i] = total / weight
    return means


def rank_curves(curves: Mapping[str, Sequence[float]], gallery: int, path: Path) -> None:
    """Draws recall at k = 1, 2, ... of each system (the CMC curve), and that of a random order of the gallery."""
    plt = import_pyplot()
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for name, values in curves.items():
        axes.plot(np.arange(1, len(values) + 1), 100 * np.array(values), label=name, lw=1.5)
    ks = np.arange(1, len(next(iter(curves.values()))) + 1)
    axes.plot(ks, 100 * ks / gallery, color="0.5", ls="--", label="random order")
    axes.set(xlabel="k", ylabel="R@k (%)", xlim=(1, ks[-1]), ylim=(0, 101))
    axes.grid(alpha=0.2)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=9)
    save_figure(figure, path)


def recall_by_scale(systems: Mapping[str, Mapping[str, Mapping]], path: Path) -> None:
    """Draws R@1 and R@3 against the guidance scale (Fig. 8a and 8b), from summaries by system and by "scale S"."""
    plt = import_pyplot()
    figure, panels = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    few = len(systems) <= 3  # more intervals would hide each other
    for axes, rate in zip(panels, ("r@1", "r@3"), strict=True):
        for name, rows in systems.items():
            scales = [row.removeprefix("scale ") for row in rows]
            low, middle, high = (
                100 * np.array([row[rate][x] for row in rows.values()]) for x in ("low", "rate", "high")
            )
            if len(systems) > 1 and len(rows) == 1:  # a system without inputs: the same at all scales
                axes.axhline(middle[0], color="0.5", ls="--", label=name)
                continue
            (line,) = axes.plot(scales, middle, marker="o", ms=4, label=name)
            if few:
                axes.fill_between(scales, low, high, color=line.get_color(), alpha=0.12, lw=0)
        axes.set(xlabel="guidance scale", ylabel=f"{rate.upper()} (%)" + (", 95 % interval" if few else ""))
        axes.set_ylim(0, None)
        axes.grid(alpha=0.2)
    panels[1].legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=9)
    save_figure(figure, path)


def _finite(line: Curve, positive: bool) -> Curve:
    x, y = np.asarray(line.x, float), np.asarray(line.y, float)
    shown = np.isfinite(y) & (y > 0 if positive else True)
    return dataclasses.replace(line, x=x[shown], y=y[shown])


def _draw(axes: Any, line: Curve) -> None:
    """Draws one curve of finite values."""
    if not line.x.size:
        return
    name, style = line.name or "_unnamed", {"color": line.colour, "ls": "--" if line.dashed else "-"}
    single = "o" if line.x.size == 1 else ""  # a line through a single point is invisible
    if line.mark_minimum:
        at = int(line.y.argmin())
        name += f" (minimum {line.y[at]:.4g} at {line.x[at]:g})"
        axes.plot(*_thin(line.x, line.y), **style, lw=1.3, marker="o", ms=3.5, label=name, zorder=3)
        axes.plot(line.x[at], line.y[at], "o", ms=9, mfc="none", mec=line.colour, mew=1.3, zorder=3)
    elif line.smooth:
        axes.plot(*_thin(line.x, line.y), **style, lw=0.8, alpha=0.3)
        axes.plot(*_thin(line.x, smoothed(line.y)), **style, lw=1.6, marker=single, label=name)
    else:
        axes.plot(*_thin(line.x, line.y), **style, lw=1.3, marker=single, label=name)


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The points of a curve; of a long one only the minimum and maximum of each short piece, which keeps spikes."""
    if len(x) <= CHART_POINTS:
        return x, y
    pieces = np.array_split(np.arange(len(x)), CHART_POINTS // 2)
    kept = sorted({int(piece[end(y[piece])]) for piece in pieces for end in (np.argmin, np.argmax)} | {0, len(x) - 1})
    return x[kept], y[kept]


def _format_axes(axes: Any, log: bool, limits: tuple[float | None, float | None], has_names: bool) -> None:
    """Sets scale, limits, ticks and legend of a chart."""
    from matplotlib import ticker

    plain = ticker.FuncFormatter(lambda value, _: f"{value:g}")
    if log:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        if high < 100 * low:  # few powers of ten: label ticks in between, too
            axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_formatter(ticker.NullFormatter())
    axes.yaxis.set_major_formatter(plain)
    axes.set_ylim(*limits)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(7, integer=True))
    axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    axes.set_xlabel("step")
    if has_names:
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False,
            borderaxespad=0.2, handlelength=1.2, columnspacing=1.2,
        )  # fmt: skip
