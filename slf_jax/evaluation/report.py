"""Writes the files of an evaluation: results.json, report.md and pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from slf_common.files import write_atomically
from slf_jax.cascade.images import downscale
from slf_jax.evaluation import metrics, protocol, tables
from slf_jax.evaluation.features import ATTRIBUTES
from slf_jax.evaluation.protocol import FaceScorer, Scores
from slf_jax.inference.scales import LOWRES_AUG, format_value
from slf_jax.plots import curves, grids, matrix

FACES = 12  # people in faces.png
FILES = ("results.json", "report.md", "faces.png", "rank_curve.png", "scales.png", "confusion.png")


def write(
    results: dict, scores: Mapping[str, Scores], images: np.ndarray, scorer: FaceScorer, use_thumbnail: bool, out: Path
) -> None:
    """Writes the results as JSON and Markdown, and the pictures, to the folder `out`."""
    chosen = scores[results["chosen"]]
    _draw_faces(images, scorer, chosen, use_thumbnail, out / "faces.png")
    size = min(protocol.MAX_RANK, len(scorer.gallery))
    shown = [results["chosen"], *results["masked"], *results["controls"]]
    recalls = {name: [metrics.recall(scores[name].rank, k) for k in range(1, size + 1)] for name in shown}
    curves.rank_curves(recalls, len(scorer.gallery), out / "rank_curve.png")
    if results["axes"]:
        _draw_scales(results, out / "scales.png")
    elif len(results["systems"]) > 1:
        curves.recall_by_scale({results["subject"]: results["systems"]}, out / "scales.png")
    matrix.confusions(protocol.confusions(chosen, scorer.people), out / "confusion.png")
    write_atomically(out / "results.json", json.dumps(results, indent=2).encode())
    write_atomically(out / "report.md", tables.markdown(results).encode())


def _draw_scales(results: Mapping, path: Path) -> None:
    """Draws recall, fidelity and agreement of attributes over one or two axes of scales or noise."""
    rows = list(results["systems"].values())
    tables = {
        "R@1 (%)": [100 * row["r@1"]["rate"] for row in rows],
        "R@10 (%)": [100 * row["r@10"]["rate"] for row in rows if "r@10" in row],
        "PSNR (dB)": [row["psnr"]["mean"] for row in rows],
    }
    for name in ATTRIBUTES:
        if all(row[name] for row in rows):
            tables[f"{name} (%)"] = [100 * row[name]["rate"] for row in rows]
    titles = {"scale": "scale", LOWRES_AUG: "noise on the upsampler's input"}
    axes = {
        titles.get(name, f"scale of {name}"): [format_value(each) for each in values]
        for name, values in results["axes"].items()
    }
    matrix.heat_maps({title: values for title, values in tables.items() if values}, axes, path)


def _draw_faces(images: np.ndarray, scorer: FaceScorer, scores: Scores, use_thumbnail: bool, path: Path) -> None:
    """Draws thumbnail, generated face, real face and the nearest faces of the gallery, for the first people."""
    people, count = scorer.people, min(FACES, len(scorer.people))
    by_speaker = dict(zip(people.gallery, people.faces, strict=True))
    blank, real = np.full_like(images[0, 0], 255), people.probe["face"][:count]
    nearest = [([by_speaker[name] for name in scores.nearest[i]] + 3 * [blank])[:3] for i in range(count)]
    columns = {"8x8 thumbnail": downscale(real)} if use_thumbnail else {}
    columns |= {"generated": images[:count, 0], "real": real}
    columns |= dict(zip(("nearest", "second", "third"), np.stack(nearest, 1), strict=True))
    rows = [f"{people.speakers[i][:20]}: rank {scores.rank[i, 0] or 'none'}" for i in range(count)]
    grids.image_grid(columns, path, rows)
