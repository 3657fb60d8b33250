"""The training loop: trains the stages of the cascade, one after the other."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import ml_collections
import numpy as np
import optax

from slf_common.errors import UserError
from slf_common.files import local_path
from slf_jax import distributed
from slf_jax.cascade.distillation import Teacher, add_parameters
from slf_jax.streams import stream
from slf_jax.training.checkpoints import Checkpoints, latest_ema
from slf_jax.training.input_pipeline import InputPipeline
from slf_jax.training.interruption import explain_resource_errors, stop_signals
from slf_jax.training.logging import Log, Profile, is_due
from slf_jax.training.metrics import VALIDATION
from slf_jax.training.optimizer import make_optimizer
from slf_jax.training.preview import Preview
from slf_jax.training.run import Run, prepare
from slf_jax.training.settings import TrainSettings, check_config, stages_of, train_settings
from slf_jax.training.state import TrainState, init_state, start_state
from slf_jax.training.step import first_not_finite, make_loss, make_step


def train_command(
    config: ml_collections.ConfigDict, module: str, argv: Sequence[str], *, skip_damaged: bool = False,
    teacher: Teacher | None = None,
) -> None:  # fmt: skip
    """`train` for the command `python -m module`, given `argv`; prints what to do next."""
    finished = train(config, skip_damaged=skip_damaged, teacher=teacher)
    if not distributed.is_main():
        return
    if finished:
        path = local_path(config.workdir)
        name = shlex.quote(str(path))
        print(f"{config.workdir}: trained. Previews: {path / 'samples'}; curves: tensorboard --logdir {name}, or")
        print(f"  python -m slf_jax.report --workdir {name}")
    else:
        command = shlex.join(arg for arg in argv if arg != "--skip-damaged")
        print(f"{config.workdir}: stopped and saved. To resume:\n  python -m {module} {command}")


def train(config: ml_collections.ConfigDict, *, skip_damaged: bool = False, teacher: Teacher | None = None) -> bool:
    """Trains the stages of `config.stage`; returns False if a signal stopped it early (the state is saved).

    `skip_damaged`: resume from the checkpoint before a damaged one. `teacher`: what a distilled system learns from.
    Raises `UserError`.
    """
    check_config(config)
    if config.distill.max_scale and not teacher:
        raise UserError(f"config.distill.max_scale={config.distill.max_scale:g}: use slf_jax.distill, which sets it")
    names = stages_of(config)
    distributed.use_compilation_cache(config.compilation_cache)
    for name in names:
        _check_batch(train_settings(config, name), name)
    run = prepare(config, skip_damaged, teacher)
    steps = sum(config.train[name].steps for name in names)
    with (
        explain_resource_errors(config),
        stop_signals() as stop,
        Log(run.workdir, steps, config.train.log_every) as log,
    ):
        return all(train_stage(name, run, log, stop) for name in names)


def train_stage(name: str, run: Run, log: Log, stop: Callable[[], bool]) -> bool:
    """Trains one stage; returns False if `stop` ended it early."""
    config, settings = run.config, train_settings(run.config, name)
    steps, batch_size, stride = settings.steps, settings.batch_size, settings.steps_per_dispatch
    with Checkpoints(run.workdir, name, settings.max_to_keep, settings.keep_best) as checkpoints:
        # ---- state
        optimizer, schedule = make_optimizer(settings)
        root = root_key(config.seed, name)
        state = _restore_or_init(name, run, optimizer, checkpoints, stream(root, "init"))
        first = int(state.step)
        if first >= steps:
            log.begin(name, first, 0)
            return True
        if first % stride:
            raise UserError(
                f"{checkpoints.path / str(first)}: not a multiple of config.train.steps_per_dispatch={stride}; set it "
                "to 1"
            )
        taught_by = run.teacher.params[name] if run.teacher else None
        state, key, taught_by = distributed.replicate(run.mesh, (state, root, taught_by))
        log.begin(name, first, batch_size)
        # ---- data
        pipeline = InputPipeline(
            run.clips, batch_size, stride, seed=config.seed, first=first, threads=config.data.threads,
            mesh=run.mesh, mode=config.parallel, stop=stop, mask=run.system.mask_unused_inputs,
        )  # fmt: skip
        batch = next(pipeline)
        # ---- compile
        step = make_step(run.system, name, optimizer, schedule, settings, run.teacher)
        compiled = distributed.compile_steps(lambda s, b, shared: step(s, b, *shared), run.mesh, config.parallel)
        program = _compile(compiled, state, batch, (key, taught_by), name)
        distributed.wait_for_all(f"{name} compiled")
        preview = Preview(config, run.system, name, run.held_out or run.clips, run.teacher, taught_by)
        # ---- loop (metrics are read one dispatch late, while the devices work on the next)
        log.start(first, pipeline.waited)
        pending, stopping = None, False
        with jax.transfer_guard("disallow"), contextlib.closing(Profile(run.workdir, config.profile_steps, first)) as p:
            for number in range(first + stride, steps + 1, stride):
                state, metrics = program(state, batch, (key, taught_by))
                p.step(number, metrics)
                previous, pending = pending, (number, metrics, pipeline.host)
                if number < steps:
                    batch = next(pipeline)
                if previous:
                    stopping = _log(previous, name, run, log, pipeline, state, key)
                stopping |= jax.process_count() == 1 and stop()  # several processes must agree on the step
                validates = run.held_out and _is_due_or_last(number, steps, settings.validate_every)
                validation = preview.loss(state.ema) if validates else {}
                if number == steps or stopping or is_due(number, settings.checkpoint_every):
                    # Raises for a state that is not finite before it is saved.
                    stopping |= _log(pending, name, run, log, pipeline, state, key, final=number == steps)
                    pending = None
                    checkpoints.save(state, run.meta, validation.get(VALIDATION))
                if validation:
                    log.write(number, validation)
                if _is_due_or_last(number, steps, settings.preview_every) and not stopping:
                    log.picture(number, preview.columns(state.ema))
                if stopping and number < steps:
                    return False
    return not stopping


def root_key(seed: int, name: str) -> jax.Array:
    """The key from which all keys of a stage's training are derived: its initial parameters and each step's."""
    return stream(stream(jax.random.key(seed), "train"), name)


def _log(
    pending: tuple, name: str, run: Run, log: Log, pipeline: InputPipeline, state: TrainState, key: jax.Array,
    final: bool = False,
) -> bool:  # fmt: skip
    """Waits for the metrics of a dispatch and logs them; returns whether any process was asked to stop.

    Raises `UserError` for a loss or gradient that is not finite. (Such a step left the parameters unchanged.)
    """
    number, metrics, host = pending
    metrics = jax.device_get(metrics)
    if not metrics["finite"].all():
        index = int(np.argmin(metrics["finite"]))
        step = number - len(metrics["finite"]) + 1 + index
        batch = {key: value[index] for key, value in host.items()}
        with jax.transfer_guard("allow"):
            lesson = run.teacher.lesson(name, run.teacher.params[name]) if run.teacher else None
            loss_of = make_loss(run.system, name, train_settings(run.config, name), lesson)
            params = jax.device_get(state.params)
            where = first_not_finite(loss_of, params, batch, stream(jax.device_get(key), "step", step - 1))
        loss, norm = (metrics[kind][index] for kind in ("loss", "grad_norm"))
        raise UserError(
            f"{run.workdir}: step {step} of stage {name}: the loss is {loss:.4g}, the gradient's norm {norm:.4g}; the "
            f"first that is not finite is {where}. Such a step is never saved: lower config.train.{name}.learning_rate "
            "and run the same command again"
        )
    log.steps(number, metrics, pipeline.waited, final=final)
    return bool(metrics["stop"].any())


def _restore_or_init(
    name: str, run: Run, optimizer: optax.GradientTransformation, checkpoints: Checkpoints, key: jax.Array
) -> TrainState:
    """The stage's newest checkpoint; without one a new state: random, with the weights of `config.init_from`, or with
    those of the teacher.
    """
    stage = run.system.stages[name]
    like = jax.eval_shape(lambda: init_state(stage, optimizer, key))
    state = checkpoints.resume(like, run.skip_damaged)
    if state is not None:
        return state
    if run.teacher:
        return start_state(add_parameters(run.teacher.params[name], jax.jit(stage.init)(key)), optimizer)
    if not run.config.init_from:
        return init_state(stage, optimizer, key)
    return start_state(latest_ema(run.config.init_from, name, like.params), optimizer)


def _is_due_or_last(step: int, steps: int, every: int) -> bool:
    """Whether an action is due after this step, which includes the last one if the stage has at least `every` steps."""
    return is_due(step, every) or (every > 0 and step == steps >= every)


def _check_batch(settings: TrainSettings, name: str) -> None:
    """Raises `UserError` if a stage's batch cannot be divided evenly over the devices."""
    devices, parts = jax.device_count(), settings.accumulate
    if settings.batch_size % (devices * parts):
        raise UserError(
            f"config.train.{name}.batch_size={settings.batch_size}: cannot be divided over {devices} devices in "
            f"{parts} parts (config.train.{name}.accumulate); choose a multiple of {devices * parts}"
        )


def _compile(step: jax.stages.Wrapped, state: TrainState, batch: Mapping, shared: tuple, name: str) -> Callable:
    """Compiles the step ahead of time and prints its size and cost."""
    start = time.perf_counter()
    lowered = step.lower(state, batch, shared)
    compiled = lowered.compile()
    if not distributed.is_main():
        return compiled
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    counted = lowered.cost_analysis()  # None on GPUs
    flops = f"{counted['flops'] / 1e9:.1f} GFLOP per step on each device, " if counted else ""
    print(
        f"{name:10} {count / 1e6:.2f} M parameters, {flops}compiled in {time.perf_counter() - start:.1f} s",
        flush=True,
    )
    return compiled
