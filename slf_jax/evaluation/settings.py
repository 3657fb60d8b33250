"""Rules and checks of the config's group `ablations`."""

from __future__ import annotations

import ml_collections

from slf_common import rules
from slf_common.errors import UserError
from slf_common.rules import choice, each, flag, integer, real, text
from slf_jax.cascade.settings import NAMES, group
from slf_jax.evaluation import embedders
from slf_jax.evaluation.ablation_tables import MODES
from slf_jax.training import settings as training_settings

ABLATIONS = group(
    "ablations",
    {
        "scales": each(real(0), 1, distinct=lambda scale: f"{scale:g}"),
        "modes": each(choice(MODES), 1, distinct=str),
        "any_subset_steps.base": integer(0),
        "any_subset_steps.upsampler": integer(0),
        "people": integer(0),
        "samples": integer(1),
        "chunk": integer(1),
        "embedder": choice(("auto", *embedders.EMBEDDERS)),
        "metric": choice(("", *sorted(set(embedders.METRICS.values())))),
        "detector": text(),
        "same_clip": flag(),
        "systems.*.thumbnail": flag(),
        "systems.*.inputs": NAMES,
    },
)
RULES = {**training_settings.RULES, **ABLATIONS}


def check_config(config: ml_collections.ConfigDict) -> None:
    """Checks a whole config with its group `ablations`, except for `extract`. Raises `UserError`."""
    if "ablations" not in config:
        raise UserError("this config has no group `ablations`; start from configs/ablations.py")
    training_settings.check_config(config)
    rules.check(config, ABLATIONS, ours=lambda key: key.startswith("ablations."))
    systems = config.ablations.systems
    if not systems:
        raise UserError("config.ablations.systems: must hold at least one system, as in configs/ablations.py")
    for name, system in systems.items():
        if more := [part for part in system.inputs if part not in config.data.inputs]:
            raise UserError(f"config.ablations.systems: {name!r} uses {more[0]!r}, config.data.inputs does not")
