"""What the settings of a config may be on the JAX side: the one place where they are checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_collections

from slf_common import rules
from slf_common.errors import UserError
from slf_common.rules import Rule, choice, constant, each, either, flag, integer, real, text
from slf_jax import parallel
from slf_jax.diffusion import denoiser, guidance, noise, samplers
from slf_jax.evaluation import faces
from slf_jax.evaluation.ablation_tables import MODES
from slf_jax.models.blocks import ATTENTIONS, norm_groups

GUIDE_SIZE = 8
STAGES = ("base", "upsampler")
SIZES = {"base": (GUIDE_SIZE, 32), "upsampler": (32, 128)}  # low-resolution and own side

PER_LEVEL = ("mults", "blocks", "self_attention", "cross_attention")
SYSTEM = ("model.", "diffusion.", "data.inputs")  # what decides a trained system
SAMPLE = ("sample.",)


def for_stage(value: Any, name: str) -> Any:
    """A setting of one stage: a pair is (base, upsampler), one number serves both."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return values[STAGES.index(name) % len(values)]


def stages_of(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """The stages that `config.stage` trains."""
    return STAGES if config.stage == "all" else (config.stage,)


def _pair(rule: Rule) -> Rule:
    both = either(rule, each(rule, 1, 2))
    return Rule(f"{rule.text}, or a pair of them: (base, upsampler)", both.read)


def _interval(value: Any) -> Any:
    values = each(real(0), 0, 2).read(value)
    if values and not (len(values) == 2 and values[0] < values[1]):
        raise ValueError
    return values


def _coordinator(value: Any) -> str:
    host, _, port = text().read(value).rpartition(":")
    if value and not (host and port.isascii() and port.isdecimal() and 0 < int(port) < 2**16):
        raise ValueError
    return value


SHARE, COUNT, EVERY = real(0, 1), integer(1), integer(0)
NAMES = each(text(empty=False), distinct=str)
_network = {
    "patch": integer(1, 128),
    "width": integer(1, 2**16),
    "mults": each(integer(1, 100), 1),
    "blocks": each(integer(1, 100), 1),
    "self_attention": each(flag(), 1),
    "cross_attention": each(flag(), 1),
    "head_width": integer(1, 2**16),
    "attention": choice(ATTENTIONS),
    "cond_width": integer(1, 2**16),
    "dropout": real(0, below=1),
    "remat": flag(),
}
_diffusion = {
    "preconditioning": choice(denoiser.PRECONDITIONINGS),
    "noise": choice(noise.DISTRIBUTIONS),
    "noise_mean": real(-10, 10),  # beyond it all levels are cut to noise.SIGMA_RANGE
    "noise_std": real(above=0, most=10),
    "weight": choice(denoiser.WEIGHTS),
    "max_weight": real(above=0),
    "residual": flag(),
    "spread": real(1e-3, 10),  # of pixels in [-1, 1]
    "spread_alone": real(1e-3, 10),
    "low_noise": real(0, 10),
}
_train = {
    "steps": _pair(COUNT),
    "batch_size": _pair(COUNT),
    "accumulate": _pair(COUNT),
    "steps_per_dispatch": COUNT,
    "learning_rate": _pair(real(above=0)),
    "warmup": integer(0),
    "final_rate": SHARE,
    "weight_decay": real(0),
    "clip": real(above=0),
    "ema": real(0, below=1),
    "cond_drop": SHARE,
    "guide_drop": SHARE,
    "constituent_drop.*": SHARE,
    "flip": flag(),
    "log_every": EVERY,
    "validate_every": EVERY,
    "preview_every": EVERY,
    "checkpoint_every": EVERY,
    "keep": COUNT,
    "keep_best": integer(0),
    "skip_spikes": either(constant(0.0), real(1)),
}
_sample = {
    "sampler": choice(samplers.SAMPLERS),
    "steps": integer(1, 100_000),
    "levels": choice(noise.SPACINGS),
    "sigma_min": real(1e-6, 1e6),
    "sigma_max": real(1e-6, 1e6),
    "rho": real(1, 1000),
    "churn": real(0),
    "temperature": real(0),
    "interval": Rule("two levels of sigma, low and high with 0 <= low < high, or () for all levels", _interval),
    "threshold": choice(guidance.THRESHOLDS),
    "quantile": real(above=0, most=1),
    "guide_consistency": flag(),
}
_ablations = {
    "scales": each(real(0), 1, distinct=lambda scale: f"{scale:g}"),
    "modes": each(choice(MODES), 1, distinct=str),
    "any_subset_steps": each(COUNT, 0, 2),
    "people": integer(0),
    "samples": COUNT,
    "chunk": COUNT,
    "embedder": choice(("auto", *faces.EMBEDDERS)),
    "metric": choice(("", *sorted(set(faces.METRICS.values())))),
    "detector": text(empty=False),
    "same_clip": flag(),
    "systems.*.guide": flag(),
    "systems.*.inputs": NAMES,
}


def _group(name: str, table: Mapping[str, Rule]) -> dict[str, Rule]:
    return {f"{name}.{key}": rule for key, rule in table.items()}


RULES: dict[str, Rule] = {
    "seed": integer(0),
    "workdir": text(empty=False),
    "parallel": choice(parallel.MODES),
    "stage": choice(("all", *STAGES)),
    "compilation_cache": text(),
    "init_from": text(),
    "profile_steps": integer(0),
    "distributed": flag(),
    "coordinator": Rule("HOST:PORT, or empty", _coordinator),
    "num_processes": integer(0),
    "process_id": integer(-1),
    "data.dir": text(empty=False),
    "data.inputs": NAMES,
    "data.threads": integer(1, 1024),
    "data.skip_corrupt": flag(),
    "model.dtype": choice(("auto", "float32", "bfloat16")),
    "model.inputs": NAMES,
    **{key: rule for name in STAGES for key, rule in _group(f"model.{name}", _network).items()},
    **{key: rule for name in STAGES for key, rule in _group(f"diffusion.{name}", _diffusion).items()},
    **_group("train", _train),
    **_group("sample", _sample),
    **_group("ablations", _ablations),
}


def check_config(config: ml_collections.ConfigDict) -> None:
    """Checks a whole config, its group `extract` excepted, and puts numbers into their own type (1e5 becomes an int).

    The group `ablations` may be missing. Raises `UserError`, one line with key, value and what it must be.
    """
    ablations = "ablations" in config
    others = ("extract.",) if ablations else ("extract.", "ablations.")
    rules.check(config, RULES, ours=lambda key: not key.startswith(others))
    _check_system(config)
    _check_sample(config)
    _check_dispatch(config)
    _check_processes(config)
    if ablations:
        _check_ablations(config)


def check_system(config: ml_collections.ConfigDict) -> None:
    """Checks what decides a system: its networks, diffusion and inputs. Raises `UserError`."""
    rules.check(config, RULES, ours=lambda key: key.startswith(SYSTEM))
    _check_system(config)


def check_sample(config: ml_collections.ConfigDict) -> None:
    """Checks how a system is sampled, the group `sample`. Raises `UserError`."""
    rules.check(config, RULES, ours=lambda key: key.startswith(SAMPLE))
    _check_sample(config)


def _check_system(config: ml_collections.ConfigDict) -> None:
    for name in STAGES:
        _check_levels(name, config.model[name])
        _check_widths(name, config.model[name])
    room = config.model.inputs or config.data.inputs
    if more := [name for name in config.data.inputs if name not in room]:
        raise UserError(f"config.data.inputs: has {more[0]!r}, which config.model.inputs leaves no room for")


def _check_levels(name: str, net: ml_collections.ConfigDict) -> None:
    """One entry per level in every tuple, and an image side that every level halves."""
    key, counts = f"config.model.{name}", {each: len(net[each]) for each in PER_LEVEL}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{each} has {count}" for each, count in counts.items())
        raise UserError(f"{key}: each of {', '.join(PER_LEVEL)} must have one entry per level; {told}")
    side, levels = SIZES[name][1], len(net.mults)
    if side % (net.patch * 2 ** (levels - 1)):
        raise UserError(
            f"{key}.patch={net.patch}: must divide the image side of {side}, as must twice that for every level "
            f"(mults) after the first: patch x {2 ** (levels - 1)} with {levels} levels"
        )


def _check_widths(name: str, net: ml_collections.ConfigDict) -> None:
    """Channels that attention heads and group norms divide."""
    key = f"config.model.{name}"
    if net.width % net.head_width:
        raise UserError(f"{key}.width={net.width}: must be a multiple of head_width={net.head_width}")
    for level, mult in enumerate(net.mults):
        channels, groups = net.width * mult, norm_groups(net.width * mult)
        if channels % groups:
            raise UserError(
                f"{key}.width={net.width}: level {level} has {channels} channels, which its {groups} norm groups must "
                "divide; a multiple of 32 always fits"
            )
    if net.attention == "cudnn" and (net.head_width % 8 or net.head_width > 256):
        raise UserError(
            f"{key}.head_width={net.head_width}: with attention='cudnn' it must be a multiple of 8, at most 256"
        )


def _check_sample(config: ml_collections.ConfigDict) -> None:
    sample = config.sample
    if not sample.sigma_min < sample.sigma_max:
        raise UserError(
            f"config.sample.sigma_min={sample.sigma_min:g}: must be below config.sample.sigma_max={sample.sigma_max:g}"
        )
    if sample.churn and sample.sampler != "heun":
        raise UserError(
            f"config.sample.churn={sample.churn:g}: must be 0 with config.sample.sampler={sample.sampler!r}; "
            "only heun adds noise on the way"
        )


def _check_dispatch(config: ml_collections.ConfigDict) -> None:
    """Batches that `accumulate` divides, and nothing that falls due within a dispatch of several steps."""
    train, stride = config.train, config.train.steps_per_dispatch
    for name in stages_of(config):
        batch_size, parts = for_stage(train.batch_size, name), for_stage(train.accumulate, name)
        if batch_size % parts:
            raise UserError(
                f"config.train.batch_size={batch_size}: must be a multiple of config.train.accumulate={parts} "
                f"(stage {name})"
            )
        for key in ("steps", "checkpoint_every", "validate_every", "preview_every"):
            if for_stage(train[key], name) % stride:
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
            f"config.process_id={config.process_id}: with config.coordinator and "
            f"config.num_processes={config.num_processes} it must be this process's number, from 0 to one less than "
            "there are"
        )


def _check_ablations(config: ml_collections.ConfigDict) -> None:
    systems = config.ablations.systems
    if not systems:
        raise UserError("config.ablations.systems: must hold at least one system, as configs/ablations.py has them")
    for name, system in systems.items():
        if more := [part for part in system.inputs if part not in config.data.inputs]:
            raise UserError(f"config.ablations.systems: {name!r} sees {more[0]!r}, config.data.inputs does not")
