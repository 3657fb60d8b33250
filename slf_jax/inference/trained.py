"""Loading a trained system from its run directory, an exported folder, or the Hugging Face hub."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from slf_common.config import override
from slf_common.errors import UserError
from slf_common.files import local_path
from slf_jax.cascade.settings import check_sample
from slf_jax.cascade.sizes import STAGES
from slf_jax.cascade.system import System, build_system
from slf_jax.features import make_layout
from slf_jax.inference import exported, hub
from slf_jax.training.checkpoints import Checkpoints, Damaged, Meta, open_checkpoints

DISTILLED = ("sample.guidance", "sample.rescaled_", "sample.apg_", "sample.cfgpp_")  # have no effect after distillation
CHECKPOINTS = ("newest", "best")
PRETRAINED = Path(__file__).parents[1] / "pretrained" / "demo"  # drawn people; made by `make pretrained`


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained system: the metadata of its run, and by stage the EMA parameters, their digests and training steps.

    `weak`: a worse system to guide it with (`inference.weak`).
    """

    meta: Meta
    system: System
    params: dict[str, Any]
    digests: dict[str, str]
    steps: dict[str, int]
    weak: Trained | None = None


def load(
    source: str | Path,
    which: str | Mapping[str, int] = "newest",
    stages: Sequence[str] = STAGES,
    overrides: Mapping[str, str] | None = None,
) -> Trained:
    """Loads a system with its EMA weights.

    Args:
      source: a run directory, an exported folder, or `hf://owner/name`.
      which: one of `CHECKPOINTS`; "best" is the one of lowest validation loss; a run has several, an export one. Or the
        training step of each stage's checkpoint.
      overrides: changes of the run's config, as in `{"sample.steps": "32"}`; checked before the weights are read.

    Raises `UserError` if a stage is missing or damaged, or a setting is invalid.
    """
    folder = hub.download(str(source)) if hub.is_hub(source) else local_path(source)
    if exported.is_exported(folder):
        return _load_exported(folder, which, stages, overrides or {})
    return _load_run(folder, which, stages, overrides or {})


def _load_exported(
    folder: Path, which: str | Mapping[str, int], stages: Sequence[str], overrides: Mapping[str, str]
) -> Trained:
    if which != "newest":
        flag = f"--checkpoint {which}" if isinstance(which, str) else "@STEP"
        raise UserError(f"{folder}: an exported system has one checkpoint; leave out {flag}")
    meta, saved = exported.read(folder)
    system = _build(meta, overrides)
    if missing := [name for name in stages if name not in saved]:
        raise UserError(f"{folder}: does not contain the stage {missing[0]!r}")
    digests = {name: saved[name]["digest"] for name in stages}
    params = exported.read_weights(folder, {name: _like(system, name) for name in stages}, digests)
    return Trained(meta, system, params, digests, {name: saved[name]["step"] for name in stages})


def _load_run(
    workdir: Path, which: str | Mapping[str, int], stages: Sequence[str], overrides: Mapping[str, str]
) -> Trained:
    meta, system, params, digests, steps = None, None, {}, {}, {}
    for name in stages:
        with open_checkpoints(workdir, name) as checkpoints:
            steps[name] = _choose_step(checkpoints, which, workdir, name)
            if system is None:
                meta = checkpoints.meta(steps[name])
                system = _build(meta, overrides)
            try:
                params[name], digests[name] = checkpoints.restore_ema(steps[name], _like(system, name))
            except Damaged as error:
                raise UserError(f"{error}. Resume training with --skip-damaged to use the previous one") from None
    if meta is None or system is None:
        raise ValueError("load needs at least one stage")
    return Trained(meta, system, params, digests, steps)


def _choose_step(checkpoints: Checkpoints, which: str | Mapping[str, int], workdir: Path, name: str) -> int:
    if not isinstance(which, str):
        if which[name] not in checkpoints.steps():
            steps = ", ".join(map(str, checkpoints.steps()))
            raise UserError(f"{workdir}: no checkpoint of stage {name!r} at step {which[name]}; there are: {steps}")
        return which[name]
    step = checkpoints.best() if which == "best" else checkpoints.latest()
    if step is None:
        without_loss = f"{workdir}: no checkpoint of stage {name!r} has a validation loss; use the newest"
        raise UserError(without_loss if which == "best" else f"{checkpoints.path}: no complete checkpoint")
    return step


def _build(meta: Meta, overrides: Mapping[str, str]) -> System:
    override(meta.config, overrides)
    if meta.config.distill.max_scale and (fixed := [key for key in overrides if key.startswith(DISTILLED)]):
        raise UserError(f"--config.{fixed[0]}: this system's guidance was distilled into its networks")
    check_sample(meta.config)
    return build_system(meta.config, make_layout(meta.schema), meta.statistics)


def _like(system: System, name: str) -> Any:
    """The shapes of a stage's parameters."""
    return jax.eval_shape(system.stages[name].init, jax.random.key(0))
