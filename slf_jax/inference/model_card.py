"""The model card of an exported system, filled from the run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import jax
import jinja2

from slf_jax.inference import exported
from slf_jax.inference.trained import Trained

TEMPLATE = "model_card.md.j2"
CONTROLS = {
    "other_persons_conditions": "another person's voice and attributes",
    "bicubic": "bicubic up-sampling of the thumbnail",
    "mean_face": "the mean training face",
}


def render(
    trained: Trained, dtype: str, about: str, license: str, examples: bool, sweep: Mapping | None, evaluation: str
) -> str:  # fmt: skip
    """Returns the card as Markdown with the hub's YAML header.

    Args:
      about: whose recordings the system was trained on.
      license: of the weights, one of the hub's identifiers.
      examples: whether there is a picture of examples.
      sweep: the contents of a sweep's metrics.json, if there is one.
      evaluation: an evaluation's main results as text, if there is one.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    config, provenance = trained.meta.config, trained.meta.provenance
    return environment.get_template(TEMPLATE).render(
        about=about,
        license=license,
        inputs=", ".join(trained.system.inputs),
        examples=exported.EXAMPLES if examples else "",
        parameters={name: count(params) / 1e6 for name, params in trained.params.items()},
        steps=trained.steps,
        digests=trained.digests,
        train=config.train,
        sample=config.sample,
        dtype=dtype,
        constituents=[part for part in trained.meta.schema.constituents if part.name in trained.system.inputs],
        detector=provenance.get("faces", {}).get("detector", "unknown"),
        estimator=provenance.get("attributes", {}).get("estimator", ""),
        sweep=sweep,
        controls=CONTROLS,
        evaluation=evaluation,
        software=exported.software(),
    )


def count(params: Mapping) -> int:
    """The number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def read_results(path: Path, digests: Mapping[str, str]) -> dict | None:
    """The contents of a JSON file of results; None if it is missing, damaged, of other weights, or of two systems."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return results if results.get("checkpoints") == digests and not results.get("guided_with") else None
