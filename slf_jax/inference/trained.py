"""Loading a trained system from its run directory."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from slf_common.config import override
from slf_common.errors import UserError
from slf_jax.cascade.settings import check_sample
from slf_jax.cascade.sizes import STAGES
from slf_jax.cascade.system import System, build_system
from slf_jax.features import make_layout
from slf_jax.training.checkpoints import Damaged, Meta, open_checkpoints

CHECKPOINTS = ("newest", "best")


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained system: the metadata of its run, and by stage the EMA parameters and their digests."""

    meta: Meta
    system: System
    params: dict[str, Any]
    digests: dict[str, str]


def load(
    workdir: str | Path,
    which: str = "newest",
    stages: Sequence[str] = STAGES,
    overrides: Mapping[str, str] | None = None,
) -> Trained:
    """Loads a system with the EMA weights of a run's stages.

    Args:
      which: one of `CHECKPOINTS`; "best" is the one of lowest validation loss.
      overrides: changes of the run's config, as in `{"sample.steps": "32"}`; checked before the weights are read.

    Raises `UserError` if a stage is missing or damaged, or a setting is invalid.
    """
    meta, system, params, digests = None, None, {}, {}
    for name in stages:
        with open_checkpoints(workdir, name) as checkpoints:
            step = checkpoints.best() if which == "best" else checkpoints.latest()
            if step is None:
                without_loss = f"{workdir}: no checkpoint of stage {name!r} has a validation loss; use the newest"
                raise UserError(without_loss if which == "best" else f"{checkpoints.path}: no complete checkpoint")
            if system is None:
                meta = checkpoints.meta(step)
                override(meta.config, overrides or {})
                check_sample(meta.config)
                system = build_system(meta.config, make_layout(meta.schema), meta.statistics)
            like = jax.eval_shape(system.stages[name].init, jax.random.key(0))
            try:
                params[name], digests[name] = checkpoints.restore_ema(step, like)
            except Damaged as error:
                raise UserError(f"{error}. Resume training with --skip-damaged to use the previous one") from None
    if meta is None or system is None:
        raise ValueError("load needs at least one stage")
    return Trained(meta, system, params, digests)
