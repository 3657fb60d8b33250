"""Distils guided sampling into the networks: `python -m slf_jax.distill --workdir runs/demo --out runs/demo_fast`.

The student takes the guidance scale as an input and makes the guided estimate in one evaluation, instead of two or
more; with --steps, one of its steps replaces several of its teacher's. It starts from the teacher's weights, is trained
by the loop of slf_jax.train, and its run directory is like any other. A student may be the next teacher.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Mapping, Sequence

import ml_collections

from slf_common import cli
from slf_common.config import override
from slf_common.errors import UserError
from slf_common.files import local_path
from slf_common.rules import set_value
from slf_jax import distributed, features
from slf_jax.cascade.distillation import STEPPERS, Teacher
from slf_jax.cascade.settings import sample_settings
from slf_jax.cascade.sizes import STAGES
from slf_jax.cascade.system import THUMBNAIL
from slf_jax.inference import arguments, groups
from slf_jax.inference.scales import check_distinct
from slf_jax.inference.trained import Trained, load
from slf_jax.training.loop import train_command
from slf_jax.training.settings import check_config
from tfrecords.reader import Clips

MAX_SCALE = 8.0
LEARNING_RATE = 1 / 3  # of the teacher's: the student starts near its goal
# Settings of the teacher that its student shares, or that are set here.
OWN = ("model.", "diffusion.", "distill.", "data.inputs", "init_from", "workdir", "sample.steps", "sample.sigma_stride")


def read_processes(overrides: Mapping[str, str]) -> ml_collections.ConfigDict:
    """The settings of the processes of a run, which are not the teacher's. Raises `UserError`."""
    config = ml_collections.ConfigDict({"distributed": False, "coordinator": "", "num_processes": 0, "process_id": -1})
    override(config, {key: text for key, text in overrides.items() if key in config})
    return config


def read_groups(text: str, trained: Trained) -> tuple[tuple[str, ...], ...]:
    """Parses `--groups`, as in `voice,attributes`. Raises `UserError`."""
    names = [name for name in map(str.strip, text.split(",")) if name]
    flag = f"--groups {text}"
    found = tuple(groups.members(flag, name, trained, trained.system.inputs) for name in names)
    check_distinct([name for group in found for name in group], flag)
    if any(THUMBNAIL in group for group in found):
        raise UserError(f"{flag}: the scale of the {THUMBNAIL} cannot be distilled; give groups of other inputs")
    if len(found) not in (0, 2):
        raise UserError(f"{flag}: give two groups, as in voice,attributes, or leave it out for one scale")
    if trained.system.max_scale and found != trained.system.groups:
        raise UserError(f"{flag}: the teacher was distilled for other groups of inputs; leave it out to keep its own")
    return found


def make_teacher(trained: Trained, args: argparse.Namespace) -> Teacher:
    """The teacher that the flags describe. Raises `UserError` for flags that it cannot follow."""
    system, settings = trained.system, sample_settings(trained.meta.config)
    chosen = read_groups(args.groups, trained) if args.groups else system.groups
    most = args.max_scale or system.max_scale or MAX_SCALE
    if system.max_scale and most > system.max_scale:
        raise UserError(f"--max-scale {most:g}: the teacher was distilled for scales up to {system.max_scale:g}")
    steps = args.steps or settings.steps
    if steps < 1 or settings.steps % steps:
        raise UserError(f"--steps {steps}: must divide the teacher's {settings.steps} steps (config.sample.steps)")
    if chosen:  # inputs in no group are masked, as in a sweep of these groups
        system = system.without([name for name in system.inputs if not any(name in group for group in chosen)])
    teacher = Teacher(system, trained.params, settings, chosen, most, settings.steps // steps)
    if teacher.replaces_steps and settings.sampler not in STEPPERS:
        raise UserError(
            f"--workdir {args.workdir}: steps of the sampler {settings.sampler!r} cannot be distilled; choose another "
            "one for the teacher with --config.sample.sampler=ddim"
        )
    return teacher


def make_config(
    trained: Trained, teacher: Teacher, args: argparse.Namespace, overrides: Mapping[str, str]
) -> ml_collections.ConfigDict:
    """The student's config: the teacher's, except for what the flags and overrides change."""
    config = copy.deepcopy(trained.meta.config)
    config.workdir, config.init_from = str(args.out), ""
    supported = tuple(config.model.supported_inputs) or tuple(config.data.inputs)
    set_value(config.model, "supported_inputs", supported)
    set_value(config.data, "inputs", teacher.system.inputs)
    first = not trained.system.max_scale  # a student's own rate and steps suit its students
    for name in STAGES:
        config.model[name].dropout = 0.0  # the targets are exact, so there is no noise to overfit
        stage, stride = config.train[name], config.train.steps_per_dispatch
        if first and f"train.{name}.learning_rate" not in overrides:
            stage.learning_rate *= LEARNING_RATE
        if first and f"train.{name}.steps" not in overrides:
            stage.steps = max(1, stage.steps // 2 // stride) * stride
    config.distill.update(teacher=str(args.workdir), max_scale=teacher.max_scale, substeps=teacher.substeps)
    config.distill.digests.update(trained.digests)
    set_value(config.distill, "groups", tuple("+".join(group) for group in teacher.groups))
    if teacher.replaces_steps:
        stride = teacher.settings.sigma_stride * teacher.substeps
        config.sample.update(sampler="ddim", steps=teacher.settings.steps // teacher.substeps, sigma_stride=stride)
    return config


def check_data(trained: Trained, config: ml_collections.ConfigDict) -> None:
    """Raises `UserError` if the data have other features than those that the teacher was trained on."""
    clips, meta = Clips(config.data.dir, "train"), trained.meta
    features.check_same_features(
        trained.system.inputs, meta.schema, meta.statistics, clips.schema, clips.statistics, config.data.dir,
        "choose the teacher's data with --config.data.dir",
    )  # fmt: skip


def parse_flags(argv: Sequence[str] | None) -> tuple[argparse.Namespace, dict[str, str]]:
    """The flags, and the overrides of the teacher's config. Raises `UserError`."""
    parser = cli.parser(
        "slf_jax.distill",
        "Trains a student that makes guided estimates in one evaluation, and takes fewer steps; run the same command "
        "again to resume.",
        [
            "python -m slf_jax.distill --workdir runs/demo --out runs/demo_fast",
            "python -m slf_jax.distill --workdir runs/demo --out runs/demo_two --groups voice,attributes",
            "python -m slf_jax.distill --workdir runs/demo_fast --out runs/demo_fast2 --steps 2    # then --steps 1",
            "python -m slf_jax.distill --workdir runs/demo --out runs/demo_fast --config.train.base.steps=2000",
            "python -m slf_jax.sweep --workdir runs/demo_fast --scales 0,1,2,4,8",
        ],
    )
    parser.add_argument(
        "--workdir", required=True, type=arguments.parse_source, help=f"teacher: {arguments.SOURCE_HELP}"
    )
    parser.add_argument("--out", required=True, type=local_path, help="run directory of the student")
    parser.add_argument(
        "--steps", type=int, default=0, help="sampler steps, a divisor of the teacher's (default: as many)"
    )
    parser.add_argument(
        "--groups", default="", metavar="NAMES",
        help="two groups of inputs with a scale of their own, as in voice,attributes (default: one scale for all)",
    )  # fmt: skip
    parser.add_argument("--max-scale", type=float, default=0.0, help="maximum guidance scale, at least 4 (default: 8)")
    parser.add_argument(
        "--skip-damaged", action="store_true", help="set a damaged checkpoint aside and resume from the one before it"
    )
    parser.add_argument_group(
        "overrides",
        "--config.train.KEY=VALUE and others change the teacher's config, e.g. --config.train.base.steps=1000; by "
        "default, half of the teacher's steps at a third of its learning rate",
    )
    args, overrides = cli.parse_overrides(parser, argv)
    if fixed := [key for key in overrides if key.startswith(OWN)]:
        raise UserError(
            f"--config.{fixed[0]}: cannot be changed here; the student has the teacher's networks and inputs"
        )
    return args, overrides


def main(argv: Sequence[str] | None = None) -> None:
    args, overrides = parse_flags(argv)
    with distributed.processes(processes := read_processes(overrides)):  # before JAX is used
        trained = load(args.workdir, overrides=overrides)
        trained.meta.config.update(processes)
        teacher = make_teacher(trained, args)
        config = make_config(trained, teacher, args, overrides)
        check_config(config)
        check_data(trained, config)
        command = sys.argv[1:] if argv is None else argv
        train_command(config, "slf_jax.distill", command, skip_damaged=args.skip_damaged, teacher=teacher)


if __name__ == "__main__":
    cli.run(main)
