"""The settings of training (`train`), and the check of a whole config before data, model or devices are touched."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_collections

from slf_common import rules
from slf_common.errors import UserError
from slf_common.rules import Rule, choice, constant, either, flag, integer, real, text
from slf_jax import distributed
from slf_jax.cascade import settings as cascade_settings
from slf_jax.cascade.settings import check_sample, check_system, group
from slf_jax.cascade.sizes import STAGES


def stages_of(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """The stages that `config.stage` trains."""
    return STAGES if config.stage == "all" else (config.stage,)


def _coordinator(value: Any) -> str:
    host, _, port = text().read(value).rpartition(":")
    if value and not (host and port.isascii() and port.isdecimal() and 0 < int(port) < 2**16):
        raise ValueError
    return value


SHARE, COUNT, EVERY = real(0, 1), integer(1), integer(0)
_stage = {"steps": COUNT, "batch_size": COUNT, "accumulate": COUNT, "learning_rate": real(above=0)}
_train = {
    "steps_per_dispatch": COUNT,
    "warmup_steps": integer(0),
    "final_lr_fraction": SHARE,
    "weight_decay": real(0),
    "grad_clip_norm": real(above=0),
    "ema_decay": real(0, below=1),
    "cond_drop": SHARE,
    "thumbnail_drop": SHARE,
    "constituent_drop.*": SHARE,
    "flip": flag(),
    "embedding_noise": real(0),
    "log_every": EVERY,
    "validate_every": EVERY,
    "preview_every": EVERY,
    "checkpoint_every": EVERY,
    "max_to_keep": COUNT,
    "keep_best": integer(0),
    "skip_spikes": either(constant(0.0), real(1)),
    "identity_weight": real(0),
}
RULES: dict[str, Rule] = {
    **cascade_settings.RULES,
    **{key: rule for name in STAGES for key, rule in group(f"train.{name}", _stage).items()},
    **group("train", _train),
    "seed": integer(0),
    "workdir": text(empty=False),
    "parallel": choice(distributed.MODES),
    "stage": choice(("all", *STAGES)),
    "compilation_cache": text(),
    "init_from": text(),
    "profile_steps": integer(0),
    "distributed": flag(),
    "coordinator": Rule("HOST:PORT, or empty", _coordinator),
    "num_processes": integer(0),
    "process_id": integer(-1),
    "data.dir": text(empty=False),
    "data.threads": integer(1, 1024),
    "data.skip_corrupt": flag(),
}


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """How to train one stage: `config.train` with the group of the stage, documented in configs/base.py."""

    steps: int
    batch_size: int
    accumulate: int
    learning_rate: float
    steps_per_dispatch: int
    warmup_steps: int
    final_lr_fraction: float
    weight_decay: float
    grad_clip_norm: float
    ema_decay: float
    cond_drop: float
    thumbnail_drop: float
    constituent_drop: Mapping[str, float]
    flip: bool
    embedding_noise: float
    log_every: int
    validate_every: int
    preview_every: int
    checkpoint_every: int
    max_to_keep: int
    keep_best: int
    skip_spikes: float
    identity_weight: float


def train_settings(config: ml_collections.ConfigDict, name: str) -> TrainSettings:
    """The settings of a stage's training, from a config that passed `check_config`."""
    common = {key: value for key, value in config.train.to_dict().items() if key not in STAGES}
    return TrainSettings(**common, **config.train[name].to_dict())


OTHERS = ("extract.", "ablations.")  # groups that are checked elsewhere


def check_config(config: ml_collections.ConfigDict) -> None:
    """Checks a config except for its groups `extract` and `ablations`; converts numbers to the setting's type.

    Raises `UserError` with one line: key, value and what it must be.
    """
    rules.check(config, RULES, ours=lambda key: not key.startswith(OTHERS))
    check_system(config)
    check_sample(config)
    _check_dispatch(config)
    _check_processes(config)


def _check_dispatch(config: ml_collections.ConfigDict) -> None:
    """Checks that `accumulate` divides the batch size, and `steps_per_dispatch` all intervals."""
    train, stride = config.train, config.train.steps_per_dispatch
    for name in stages_of(config):
        stage = train[name]
        if stage.batch_size % stage.accumulate:
            raise UserError(
                f"config.train.{name}.batch_size={stage.batch_size}: must be a multiple of "
                f"config.train.{name}.accumulate={stage.accumulate}"
            )
        if stage.steps % stride:
            raise UserError(
                f"config.train.{name}.steps={stage.steps}: must be a multiple of "
                f"config.train.steps_per_dispatch={stride}"
            )
    for key in ("checkpoint_every", "validate_every", "preview_every"):
        if train[key] % stride:
            raise UserError(
                f"config.train.{key}={train[key]}: must be a multiple of config.train.steps_per_dispatch={stride}"
            )


def _check_processes(config: ml_collections.ConfigDict) -> None:
    if not config.coordinator:
        return
    if not config.distributed:
        raise UserError(f"config.coordinator={config.coordinator!r}: needs config.distributed=true")
    if not 0 <= config.process_id < config.num_processes:
        raise UserError(
            f"config.process_id={config.process_id}: must be this process's number, from 0 to "
            f"config.num_processes - 1, with config.coordinator and config.num_processes={config.num_processes}"
        )
