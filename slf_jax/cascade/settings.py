"""The settings that define a system and how it is sampled (`model`, `diffusion`, `sample`), and their checks."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections
import numpy as np

from slf_common import rules
from slf_common.errors import UserError
from slf_common.rules import Rule, choice, constant, each, either, flag, integer, real, text
from slf_jax.cascade.sizes import SIZES, STAGES
from slf_jax.diffusion import denoiser, guidance, noise, samplers
from slf_jax.models.blocks import ATTENTIONS, norm_groups
from slf_jax.models.unet import ATTENTION_BLOCKS

PER_LEVEL = ("mults", "blocks", "self_attention", "cross_attention")
SYSTEM = ("model.", "diffusion.", "distill.", "data.inputs")  # settings that define a trained system
SAMPLE = ("sample.",)
# The numbers of `config.sample` that are traced, so that a new value does not recompile.
NUMBERS = ("rescaled_phi", "apg_eta", "apg_r", "apg_beta", "cfgpp_renoise", "lowres_aug")


def _interval(value: Any) -> Any:
    values = each(real(0), 0, 2).read(value)
    if values and not (len(values) == 2 and values[0] < values[1]):
        raise ValueError
    return values


NAMES = each(text(empty=False), distinct=str)
INTERVAL = Rule("two sigmas, low and high with 0 <= low < high, or () for all noise levels", _interval)
_network = {
    "patch": integer(1, 128),
    "width": integer(1, 2**16),
    "mults": each(integer(1, 100), 1),
    "blocks": each(integer(1, 100), 1),
    "self_attention": each(flag(), 1),
    "cross_attention": each(flag(), 1),
    "attention_blocks": choice(ATTENTION_BLOCKS),
    "head_width": integer(1, 2**16),
    "attention": choice(ATTENTIONS),
    "cond_width": integer(1, 2**16),
    "dropout": real(0, below=1),
    "remat": flag(),
}
_diffusion = {
    "preconditioning": choice(denoiser.PRECONDITIONINGS),
    "sigma_distribution": choice(noise.DISTRIBUTIONS),
    "p_mean": real(-10, 10),  # beyond these, all sigmas would be clipped to noise.SIGMA_RANGE
    "p_std": real(above=0, most=10),
    "weight": choice(denoiser.WEIGHTS),
    "max_weight": real(above=0),
    "residual": flag(),
    "sigma_data": real(1e-3, 10),  # in units of pixels in [-1, 1]
    "sigma_data_no_lowres": real(1e-3, 10),
    "lowres_aug_max": real(0, 10),
    "flow_noise": real(0, 10),
}
_sample = {
    "sampler": choice(samplers.SAMPLERS),
    "steps": integer(1, 100_000),
    "sigma_schedule": choice(noise.SCHEDULES),
    "sigma_min": real(1e-6, 1e6),
    "sigma_max": real(1e-6, 1e6),
    "rho": real(1, 1000),
    "churn": real(0),
    "sigma_stride": integer(1, 100_000),
    "init_noise_scale": real(0),
    "guidance": choice(guidance.KINDS),
    "rescaled_phi": real(0, 1),
    "apg_eta": real(0, 1),
    "apg_r": real(0),
    "apg_beta": real(above=-1, below=1),
    "cfgpp_renoise": real(0),
    "lowres_aug": real(0),
    "x0_threshold": choice(guidance.THRESHOLDS),
    "dynamic_threshold_percentile": real(above=0, most=1),
    "thumbnail_consistency": flag(),
}
_distill = {
    "teacher": text(),
    # Previews and the examples of exports have scales up to 4.
    "max_scale": either(constant(0.0), real(4, 1000)),
    "groups": NAMES,
    "substeps": integer(1, 100_000),
}


def group(name: str, table: Mapping[str, Rule]) -> dict[str, Rule]:
    """The rules of a group of settings, by full key."""
    return {f"{name}.{key}": rule for key, rule in table.items()}


RULES: dict[str, Rule] = {
    "model.dtype": choice(("auto", "float32", "bfloat16")),
    "model.supported_inputs": NAMES,
    "model.identity_width": integer(0, 2**16),
    **{key: rule for name in STAGES for key, rule in group(f"model.{name}", _network).items()},
    **{key: rule for name in STAGES for key, rule in group(f"diffusion.{name}", _diffusion).items()},
    **group("distill", _distill),
    **group("distill.digests", dict.fromkeys(STAGES, text())),
    **group("sample", _sample),
    **group("sample.guidance_interval", dict.fromkeys(STAGES, INTERVAL)),
    "data.inputs": NAMES,
}


def check_system(config: ml_collections.ConfigDict) -> None:
    """Checks the settings that define a system: its networks, diffusion and inputs. Raises `UserError`."""
    rules.check(config, RULES, ours=lambda key: key.startswith(SYSTEM))
    _check_system(config)


def check_sample(config: ml_collections.ConfigDict) -> None:
    """Checks the group `sample`. Raises `UserError`."""
    rules.check(config, RULES, ours=lambda key: key.startswith(SAMPLE))
    _check_sample(config)


def _check_system(config: ml_collections.ConfigDict) -> None:
    for name in STAGES:
        _check_levels(name, config.model[name])
        _check_widths(name, config.model[name])
    supported = config.model.supported_inputs or config.data.inputs
    if more := [name for name in config.data.inputs if name not in supported]:
        raise UserError(f"config.data.inputs: has {more[0]!r}, which is missing from config.model.supported_inputs")


def _check_levels(name: str, net: ml_collections.ConfigDict) -> None:
    """Checks that every tuple has one entry per level, and that each level can halve the image side."""
    key, counts = f"config.model.{name}", {each: len(net[each]) for each in PER_LEVEL}
    if len(set(counts.values())) > 1:
        counted = ", ".join(f"{each} has {count}" for each, count in counts.items())
        raise UserError(f"{key}: each of {', '.join(PER_LEVEL)} must have one entry per level; {counted}")
    side, levels = SIZES[name][1], len(net.mults)
    if side % (net.patch * 2 ** (levels - 1)):
        raise UserError(
            f"{key}.patch={net.patch}: must divide the image side of {side}, as must twice that for every level "
            f"(mults) after the first: patch x {2 ** (levels - 1)} with {levels} levels"
        )


def _check_widths(name: str, net: ml_collections.ConfigDict) -> None:
    """Checks that attention heads and group norms divide the channels."""
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
            "only heun supports churn"
        )
    flows = _flows(config)
    if flows and (sample.churn or sample.sampler not in samplers.DETERMINISTIC):
        key, fit = "churn" if sample.churn else "sampler", ", ".join(samplers.DETERMINISTIC)
        raise UserError(
            f"config.sample.{key}={sample[key]!r}: must not add noise, since "
            f"config.diffusion.{flows[0]}.preconditioning is 'flow'; use {fit}, without churn"
        )
    if sample.lowres_aug > (most := config.diffusion.upsampler.lowres_aug_max):
        raise UserError(
            f"config.sample.lowres_aug={sample.lowres_aug:g}: must be at most {most:g}, the most in training "
            "(config.diffusion.upsampler.lowres_aug_max)"
        )


@dataclasses.dataclass(frozen=True)
class SampleSettings:
    """How to sample (`config.sample`, documented in configs/base.py); the interval of each stage in a tuple."""

    sampler: str
    steps: int
    sigma_schedule: str
    sigma_min: float
    sigma_max: float
    rho: float
    churn: float
    sigma_stride: int
    init_noise_scale: float
    guidance: str
    rescaled_phi: float
    apg_eta: float
    apg_r: float
    apg_beta: float
    cfgpp_renoise: float
    guidance_interval: tuple[tuple[float, ...], ...]
    lowres_aug: float
    x0_threshold: str
    dynamic_threshold_percentile: float
    thumbnail_consistency: bool
    flows: tuple[str, ...]  # the stages that start from their posterior mean

    def sigmas(self, training: noise.SigmaDistribution) -> np.ndarray:
        """The noise levels [steps + 1] of the sampler, for a stage with this distribution in training."""
        steps = self.steps * self.sigma_stride
        if self.sigma_schedule == "training":
            return training.sigmas(steps)[:: self.sigma_stride]
        return noise.karras_sigmas(steps, self.sigma_min, self.sigma_max, self.rho)[:: self.sigma_stride]

    @property
    def numbers(self) -> dict[str, float]:
        """The settings `NUMBERS`, by name."""
        return {name: getattr(self, name) for name in NUMBERS}

    @property
    def evaluations(self) -> dict[str, int]:
        """Evaluations of the guided denoiser (NFE) by stage, with that of a flow's posterior mean."""
        count = 2 * self.steps - 1 if self.sampler == "heun" else self.steps
        return {name: count + (name in self.flows) for name in STAGES}

    def to_json(self) -> dict[str, Any]:
        """All settings and the number of evaluations, for the results' receipts."""
        intervals = dict(zip(STAGES, self.guidance_interval, strict=True))
        return {**dataclasses.asdict(self), "guidance_interval": intervals, "evaluations": self.evaluations}

    @property
    def run(self) -> samplers.Sampler:
        """The sampler function, with `churn` bound."""
        sampler: Callable[..., Any] = samplers.SAMPLERS[self.sampler]
        return functools.partial(sampler, churn=self.churn) if self.churn else sampler


def sample_settings(config: ml_collections.ConfigDict) -> SampleSettings:
    """`config.sample`, checked. Raises `UserError`."""
    check_sample(config)
    values = {key: plain(value) for key, value in config.sample.items()}
    values["guidance_interval"] = tuple(plain(config.sample.guidance_interval[name]) for name in STAGES)
    return SampleSettings(**values, flows=_flows(config))


def _flows(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    return tuple(name for name in STAGES if config.diffusion[name].preconditioning == "flow")


def plain(value: Any) -> Any:
    """Turns lists back into tuples, which JSON does not have."""
    return tuple(value) if isinstance(value, (list, tuple)) else value
