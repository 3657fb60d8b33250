"""The contents of a dataset, read from its summaries: as text, and as a figure with faces and one clip."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from slf_common.errors import UserError
from tfrecords.reader import Clips
from tfrecords.schema import CONTINUOUS, UNKNOWN, Schema
from tfrecords.writer import SPLITS, clip_statistics, shard_name, summary_path

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

FACE_GRID = (4, 16)  # rows, columns
MAX_BARS = 12  # in a histogram


@dataclasses.dataclass
class DatasetContents:
    """The merged summaries of a dataset's shards."""

    schema: Schema
    provenance: dict
    clips: dict[str, int]  # per split
    speakers: dict[str, int]
    shards: dict[str, int]
    bytes: int
    attributes: dict[str, Counter]  # attribute -> class name -> clips
    missing: dict[str, float]  # constituent -> share of its rows
    failures: Counter  # reason -> clips


def read_contents(directory: Path) -> DatasetContents:
    """Reads metadata and summaries, but no records. Raises `UserError` if there is no dataset."""
    metadata, info = (_read(directory, directory / name) for name in ("metadata.json", "dataset_info.json"))
    shards = {split["name"]: len(split["shardLengths"]) for split in info["splits"]}
    summaries = {
        split: [_read(directory, summary_path(directory, shard_name(split, i, n))) for i in range(n)]
        for split, n in shards.items()
    }
    merged = [summary for parts in summaries.values() for summary in parts]
    schema = Schema.from_json(metadata)
    return DatasetContents(
        schema,
        metadata["provenance"],
        {split: sum(len(s["clips"]) for s in parts) for split, parts in summaries.items()},
        {split: len({name for s in parts for name in s["speakers"]}) for split, parts in summaries.items()},
        shards,
        sum(summary["bytes"] for summary in merged),
        _count_attributes(schema, merged),
        _missing(schema, merged),
        Counter(failure["reason"] for summary in merged for failure in summary["failures"]),
    )


def _read(directory: Path, path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{directory}: no dataset here ({path.relative_to(directory)} is missing)") from None
    except ValueError:
        raise UserError(f"{path}: not valid JSON; run extract.run again") from None


def _count_attributes(schema: Schema, summaries: Sequence[Mapping]) -> dict[str, Counter]:
    attributes = {}
    for name in ("age", *schema.labels):
        counts: Counter[int] = Counter()
        for summary in summaries:
            counts.update({int(value): count for value, count in summary["people"][name].items()})
        attributes[name] = Counter({_class_name(schema, name, value): counts[value] for value in sorted(counts)})
    return attributes


def _class_name(schema: Schema, name: str, value: int) -> str:
    if value == UNKNOWN:
        return "unknown"
    return f"{10 * value}-{10 * value + 9}" if name == "age" else schema.labels[name][value]


def _missing(schema: Schema, summaries: Sequence[Mapping]) -> dict[str, float]:
    clips = sum(len(summary["clips"]) for summary in summaries)
    missing: dict[str, float] = {}
    for part in schema.constituents:
        known = sum(min(summary["sums"][part.name]["count"]) for summary in summaries)
        missing[part.name] = 1 - known / max(1, clips * part.rows)
    return missing


def describe(directory: Path, contents: DatasetContents) -> str:
    """Formats the contents as text."""
    total = sum(contents.clips.values())
    lines = [
        f"{directory}: {total} clips, {contents.bytes / 1e6:.1f} MB, {contents.bytes / max(total, 1) / 1e3:.0f} kB each"
    ]
    for split in SPLITS:
        if split in contents.clips:
            clips, speakers, shards = (getattr(contents, name)[split] for name in ("clips", "speakers", "shards"))
            lines.append(f"  {split:<12}{clips:>9} clips {speakers:>8} speakers {shards:>6} shards")
    lines.append("attributes, in clips:")
    for name, counts in contents.attributes.items():
        lines.append(f"  {name:<12}" + ", ".join(f"{value} {count}" for value, count in _largest(counts)))
    lines.append("constituents, with the share of missing rows:")
    for part in contents.schema.constituents:
        about = "; ".join(text for text in (part.extractor, part.windows, part.weights) if text)
        lines.append(f"  {part.name:<18}{part.rows:>4} x {part.width:<4}{contents.missing[part.name]:>7.2%}  {about}")
    for name, value in contents.provenance.items():
        lines.append(f"  {name}: {', '.join(map(str, value.values() if isinstance(value, dict) else value))}")
    lines.append(f"failed: {sum(contents.failures.values())} clips")
    lines += [f"  {count} {reason}" for reason, count in contents.failures.most_common()]
    return "\n".join(lines)


def _largest(counts: Counter) -> list[tuple[str, int]]:
    """Returns all classes in order, or the most common ones and the rest as one."""
    if len(counts) <= MAX_BARS:
        return list(counts.items())
    common = counts.most_common(MAX_BARS - 1)
    return [*common, (f"{len(counts) - len(common)} others", sum(counts.values()) - sum(count for _, count in common))]


def draw(contents: DatasetContents, clips: Clips, clip: Mapping, path: Path) -> None:
    """Draws a figure with histograms, missing rows, failures, faces and the constituents of one clip."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    grid = _face_grid(clips)
    heights = (5, 0.5 + 16 * grid.shape[0] / grid.shape[1], 7)  # inches; the figure is 16 inches wide
    figure = Figure(figsize=(16, sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    bars, faces, parts = np.asarray(figure.subfigures(3, 1, height_ratios=heights))
    _draw_bars(bars, contents)
    faces.suptitle(f"faces, evenly sampled from {len(clips)} clips")
    axes = faces.subplots()
    axes.imshow(grid)
    axes.axis("off")
    parts.suptitle(
        f"constituents of {clip['clip_id']}: windows on the y-axis, features on the x-axis (continuous ones are "
        f"standardised by the statistics of {'the training split' if clips.statistics else 'this clip'})"
    )
    statistics = clips.statistics or clip_statistics(contents.schema, clip)
    _draw_constituents(parts, contents.schema, clip, statistics)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def _draw_bars(figure: SubFigure, contents: DatasetContents) -> None:
    from matplotlib.ticker import MaxNLocator

    panels: dict[str, Sequence[tuple[str, float]]] = {}
    for name, counts in contents.attributes.items():
        panels[name] = _largest(counts)
    panels["rows missing, %"] = [(name, 100 * share) for name, share in contents.missing.items()]
    panels["failed clips"] = [(reason[:40], count) for reason, count in contents.failures.most_common(MAX_BARS)]
    for axes, (title, values) in zip(figure.subplots(2, 3).flat, panels.items(), strict=True):
        names, heights = zip(*values, strict=True) if values else ((), ())
        axes.barh(range(len(names)), heights, color="tab:blue")
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.05 * max([1, *heights]))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title(title if values else f"{title}: none", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)


def _face_grid(clips: Clips) -> np.ndarray:
    """Returns a grid of faces, uint8 [rows * 128, columns * 128, 3]."""
    rows, columns = FACE_GRID
    chosen = np.unique(np.linspace(0, len(clips) - 1, rows * columns).round().astype(int))
    images = [clips[int(i)]["face"] for i in chosen]
    images += [np.full_like(images[0], 255)] * (-len(images) % columns)
    return np.concatenate([np.concatenate(images[i : i + columns], 1) for i in range(0, len(images), columns)])


def _draw_constituents(figure: SubFigure, schema: Schema, clip: Mapping, statistics: Mapping) -> None:
    columns = 4
    grid = figure.subplots(-(-len(schema.constituents) // columns), columns, squeeze=False)
    for axes in grid.flat[len(schema.constituents) :]:
        axes.axis("off")
    for axes, part in zip(grid.flat, schema.constituents, strict=False):
        value = np.asarray(clip[part.name], np.float32)
        known = np.isfinite(value).any()
        axes.set_title(f"{part.name} {part.rows} x {part.width}{'' if known else ': missing'}", fontsize=10)
        if part.rows == 1:
            axes.plot(value[0], linewidth=0.8)
        elif part.kind == CONTINUOUS:
            scaled = (value - statistics[part.name]["mean"]) / statistics[part.name]["std"]
            axes.imshow(scaled, aspect="auto", origin="lower", vmin=-3, vmax=3, cmap="RdBu_r", interpolation="nearest")
        else:
            axes.imshow(value, aspect="auto", origin="lower", cmap="RdBu_r", interpolation="nearest")
