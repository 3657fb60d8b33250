"""Trains the cascade, one stage after the other: `python -m slf_jax.train --config configs/base.py`.

Running the same command again resumes. The run directory can be read without us: config.json, metrics.jsonl,
samples/*.png, tensorboard/ and checkpoints/.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import ml_collections
import numpy as np
import optax

from slf_common import cli, interrupt
from slf_common.errors import UserError
from slf_common.files import check_writable, local_path, write_atomically
from slf_jax import cascade, features, parallel
from slf_jax.feed import Feed
from slf_jax.monitor import Log, Preview, Profile, is_due
from slf_jax.settings import RULES, check_config, for_stage, stages_of
from slf_jax.state import (
    VALIDATION,
    Checkpoints,
    Damaged,
    Meta,
    TrainState,
    check_same_run,
    checkpoint_folder,
    init_state,
    load,
    start_state,
)
from slf_jax.step import first_not_finite, make_loss, make_optimizer, make_step
from slf_jax.streams import stream
from tfrecords.reader import Absent, Clips


@dataclasses.dataclass(frozen=True)
class Run:
    """What both stages of a run share. `meta` goes into every checkpoint, the config first of all."""

    meta: Meta
    system: cascade.System
    clips: Clips
    held_out: Clips | None
    mesh: jax.sharding.Mesh
    skip_damaged: bool

    @property
    def config(self) -> ml_collections.ConfigDict:
        return self.meta.config

    @property
    def workdir(self) -> Path:
        return local_path(self.config.workdir)


def train(config: ml_collections.ConfigDict, *, skip_damaged: bool = False) -> bool:
    """Trains what `config.stage` names; returns False if a signal ended it early (the state is saved).

    `skip_damaged`: go on from the checkpoint before one that is damaged. Raises `UserError` for what the user can mend.
    """
    check_config(config)
    names = stages_of(config)
    parallel.use_compilation_cache(config.compilation_cache)
    for name in names:
        _check_batch(config.train, name)
    if parallel.is_main():
        check_writable(
            local_path(config.workdir), "config.json", "metrics.jsonl", "changes.jsonl", "samples/", "tensorboard/",
            "checkpoints/", *(f"checkpoints/{name}/" for name in names), flag="--config.workdir",
        )  # fmt: skip
    run = _prepare(config, skip_damaged)
    steps = sum(for_stage(config.train.steps, name) for name in names)
    with _short_of_room(config), _signals() as stop, Log(run.workdir, steps, config.train.log_every) as log:
        return all(train_stage(name, run, log, stop) for name in names)


def _prepare(config: ml_collections.ConfigDict, skip_damaged: bool) -> Run:
    """Opens the data, builds the system, and begins or goes on in the run directory."""
    clips, held_out = _open(config.data, "train"), _open_validation(config.data)
    layout = features.make_layout(clips.schema)
    system = cascade.build(config, layout, clips.statistics)
    features.check_inputs(tuple(config.train.constituent_drop), layout)
    run = Run(Meta(config, clips.schema, clips.statistics), system, clips, held_out, parallel.make_mesh(), skip_damaged)
    changes = check_same_run(config, run.workdir)
    _check_same_data(run)
    if parallel.is_main():
        if changes:
            _record(changes, run.workdir)
        write_atomically(run.workdir / "config.json", config.to_json_best_effort(indent=2).encode())
        _describe(run)
    # No process makes the folders of checkpoints before all have looked whether there are any.
    parallel.wait_for_all("prepared")
    return run


def train_stage(name: str, run: Run, log: Log, stop: Callable[[], bool]) -> bool:
    """One stage's life: state, data, compile, loop. Returns False if `stop` ended it early."""
    config, settings = run.config, run.config.train
    steps, stride = for_stage(settings.steps, name), settings.steps_per_dispatch
    with Checkpoints(run.workdir, name, settings.keep, settings.keep_best) as checkpoints:
        # ---- state
        optimizer, schedule = make_optimizer(settings, name)
        root = root_key(config.seed, name)
        state = _state(name, run, optimizer, checkpoints, stream(root, "init"))
        first = int(state.step)
        if first >= steps:
            log.begin(name, first, 0)
            return True
        if first % stride:
            raise UserError(
                f"{checkpoints.path / str(first)}: not a multiple of config.train.steps_per_dispatch={stride}; set it "
                "to 1"
            )
        state, key = parallel.replicate(run.mesh, (state, root))
        batch_size = for_stage(settings.batch_size, name)
        log.begin(name, first, batch_size)
        # ---- data
        feed = Feed(
            run.clips, batch_size, stride, seed=config.seed, first=first, threads=config.data.threads,
            mesh=run.mesh, mode=config.parallel, stop=stop, seen=run.system.seen,
        )  # fmt: skip
        batch = next(feed)
        # ---- compile
        step = make_step(run.system, name, optimizer, schedule, settings)
        step = _compile(parallel.compile_steps(step, run.mesh, config.parallel), state, batch, key, name)
        parallel.wait_for_all(f"{name} compiled")
        preview = Preview(config, run.system, name, run.held_out or run.clips)
        profile = Profile(run.workdir, config.profile_steps, first)
        # ---- loop: metrics are read one dispatch late, while the devices work on the next
        log.start(first, feed.waited)
        pending, stopping = None, False
        with jax.transfer_guard("disallow"), contextlib.closing(profile):
            for number in range(first + stride, steps + 1, stride):
                state, metrics = step(state, batch, key)
                profile.step(number, metrics)
                before, pending = pending, (number, metrics, feed.host)
                if number < steps:
                    batch = next(feed)
                if before:
                    stopping = _read(before, name, run, log, feed, state, key)
                stopping |= jax.process_count() == 1 and stop()  # several must agree on the step
                ends = number == steps
                validation = (
                    preview.loss(state.ema) if run.held_out and _due(number, steps, settings.validate_every) else {}
                )
                if ends or stopping or is_due(number, settings.checkpoint_every):
                    # Raises before a state that is not finite is saved.
                    stopping |= _read(pending, name, run, log, feed, state, key, final=ends)
                    pending = None
                    checkpoints.save(state, run.meta, validation.get(VALIDATION))
                if validation:
                    log.write(number, validation)
                if _due(number, steps, settings.preview_every) and not stopping:
                    log.picture(number, *preview.page(state.ema))
                if stopping and not ends:
                    return False
    return not stopping


def root_key(seed: int, name: str) -> jax.Array:
    """What all keys of a stage's training are derived from: its initial parameters and each step's."""
    return stream(stream(jax.random.key(seed), "train"), name)


def _read(
    pending: tuple, name: str, run: Run, log: Log, feed: Feed, state: TrainState, key: jax.Array, final: bool = False
) -> bool:
    """Waits for the metrics of a dispatch and logs them; tells whether any process was asked to stop.

    Raises `UserError` where a loss or gradient is not finite: such a step left the parameters as they were.
    """
    number, metrics, host = pending
    metrics = jax.device_get(metrics)
    if not metrics["finite"].all():
        place = int(np.argmin(metrics["finite"]))
        step = number - len(metrics["finite"]) + 1 + place
        batch = {key: value[place] for key, value in host.items()}
        with jax.transfer_guard("allow"):
            loss_of, params = make_loss(run.system, name, run.config.train), jax.device_get(state.params)
            where = first_not_finite(loss_of, params, batch, stream(jax.device_get(key), "step", step - 1))
        loss, norm = (metrics[what][place] for what in ("loss", "grad_norm"))
        raise UserError(
            f"{run.workdir}: step {step} of stage {name}: the loss is {loss:.4g}, the gradient's norm {norm:.4g}; the "
            f"first that is not finite is {where}. No such step is ever saved: lower config.train.learning_rate and "
            "run the same command again"
        )
    log.steps(number, metrics, feed.waited, final=final)
    return bool(metrics["stop"].any())


def _state(
    name: str, run: Run, optimizer: optax.GradientTransformation, checkpoints: Checkpoints, key: jax.Array
) -> TrainState:
    """The stage's newest checkpoint, or else a fresh state: random, or with the weights of `config.init_from`."""
    stage = run.system.stages[name]
    like = jax.eval_shape(lambda: init_state(stage, optimizer, key))
    state = checkpoints.resume(like, run.skip_damaged)
    if state is not None:
        return state
    if not run.config.init_from:
        return init_state(stage, optimizer, key)
    params = load(run.config.init_from, stages=(name,)).params[name]
    same = jax.tree.map(np.shape, params) == jax.tree.map(np.shape, like.params)
    if not same:
        raise UserError(
            f"{run.config.init_from}: its {name} stage has other parameters than this config's; "
            "give the same config.model and config.data.inputs"
        )
    return start_state(params, optimizer)


def _due(step: int, steps: int, every: int) -> bool:
    """Every so many steps, and at the end of a stage that is long enough for one."""
    return is_due(step, every) or (every > 0 and step == steps >= every)


def _check_batch(settings: ml_collections.ConfigDict, name: str) -> None:
    """Raises `UserError` where batches do not divide over the devices that there are."""
    devices, parts = jax.device_count(), for_stage(settings.accumulate, name)
    batch_size = for_stage(settings.batch_size, name)
    if batch_size % (devices * parts):
        raise UserError(
            f"config.train.batch_size={batch_size}: does not divide over {devices} devices in {parts} parts "
            f"(config.train.accumulate); choose a multiple of {devices * parts}"
        )


def _open(settings: ml_collections.ConfigDict, split: str) -> Clips:
    return Clips(settings.dir, split, skip_corrupt=settings.skip_corrupt)


def _open_validation(settings: ml_collections.ConfigDict) -> Clips | None:
    """The validation split, if the dataset has one."""
    try:
        return _open(settings, "validation")
    except Absent:
        return None


def _check_same_data(run: Run) -> None:
    """Raises `UserError` if the run was begun with other features than the dataset now has."""
    if (then := _begun_with(run.workdir)) is None:
        return
    features.check_same_features(
        run.system.inputs, then.schema, then.statistics, run.meta.schema, run.meta.statistics, run.config.data.dir,
        "choose another --config.workdir",
    )  # fmt: skip


def _begun_with(workdir: Path) -> Meta | None:
    """What stands beside the numbers of the run's checkpoints, None if there are none."""
    for name in cascade.STAGES:
        if (checkpoint_folder(workdir) / name).is_dir():
            # A damaged one is told of, or set aside, where its stage goes on.
            with Checkpoints(workdir, name) as checkpoints, contextlib.suppress(Damaged):
                if (step := checkpoints.latest()) is not None:
                    return checkpoints.meta(step)
    return None


def _record(changes: Mapping[str, tuple], workdir: Path) -> None:
    """Adds to changes.jsonl, and says, how the config differs from what the run was made with so far."""
    saved = {name: workdir.glob(f"checkpoints/{name}/[0-9]*") for name in cascade.STAGES}
    steps = {
        name: max((int(path.name) for path in paths if path.name.isdigit()), default=0) for name, paths in saved.items()
    }
    with (workdir / "changes.jsonl").open("a") as file:
        file.write(json.dumps({"after": steps, "changes": changes}) + "\n")
    print("changed    " + ", ".join(f"{key}: {then!r} -> {now!r}" for key, (then, now) in changes.items()))


def _describe(run: Run) -> None:
    config, mesh = run.config, run.mesh
    have = {part.name for part in run.clips.schema.constituents} | {"age", *run.clips.schema.labels}
    missing = [name for name in run.system.inputs if name not in have]
    masked = f" (masked, not in the data: {', '.join(missing)})" if missing else ""
    print(f"data       {config.data.dir}: {len(run.clips)} clips to train on, {len(run.held_out or ())} held out")
    print(f"inputs     {', '.join(run.system.inputs)}{masked}")
    kind = mesh.devices.flat[0].device_kind
    print(f"devices    {mesh.size} x {kind} by {config.parallel}, {jax.process_count()} process(es)")
    for name in cascade.STAGES:
        batch, parts = (for_stage(config.train[key], name) for key in ("batch_size", "accumulate"))
        each = f"{parts} x {batch // mesh.size // parts}" if parts > 1 else f"{batch // mesh.size}"
        print(f"batch      {name}: {batch}, {each} on each device")


def _compile(step: Callable, state: TrainState, batch: Mapping, key: jax.Array, name: str) -> Callable:
    """Compiles the step ahead of time and says what it costs."""
    start = time.perf_counter()
    lowered = step.lower(state, batch, key)
    compiled = lowered.compile()
    if not parallel.is_main():
        return compiled
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    flops = (lowered.cost_analysis() or {}).get("flops", float("nan"))
    print(
        f"{name:10} {count / 1e6:.2f} M parameters, {flops / 1e9:.1f} GFLOP a step on each device, "
        f"compiled in {time.perf_counter() - start:.1f} s",
        flush=True,
    )
    return compiled


@contextlib.contextmanager
def _signals() -> Iterator[Callable[[], bool]]:
    """While open, SIGTERM and Ctrl-C only set what the yielded function tells; Ctrl-C after either ends at once.

    Python runs its handlers between two steps of the main thread, which may be compiling for minutes. So a thread
    reads the signals from a pipe, into which the interpreter writes them as they come.
    """
    came: list[int] = []
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = {s: signal.signal(s, lambda *_: None) for s in (signal.SIGTERM, signal.SIGINT)}
    wakeup = signal.set_wakeup_fd(writer)
    thread = threading.Thread(target=_hear, args=(reader, came), daemon=True)
    thread.start()
    try:
        yield lambda: bool(came)
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writer)
        thread.join()
        os.close(reader)


def _hear(reader: int, came: list[int]) -> None:
    """Puts signals from the pipe into `came` until it is closed; ends the process at a Ctrl-C that is not the first."""
    for number in iter(lambda: os.read(reader, 1), b""):
        if number[0] == signal.SIGINT and came:
            print("\ninterrupted; the last checkpoint is whole", file=sys.stderr, flush=True)
            os._exit(interrupt.STATUS)
        if number[0] in (signal.SIGTERM, signal.SIGINT):
            came.append(number[0])
            print("\nstopping after this step; Ctrl-C ends at once", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _short_of_room(config: ml_collections.ConfigDict) -> Iterator[None]:
    """Tells in one line that what runs inside fits neither the device nor the disk."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"out of memory: lower config.train.batch_size={config.train.batch_size}, raise config.train.accumulate, "
            "or set config.model.*.remat=true"
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            raise
        raise UserError(
            f"{config.workdir}: cannot be written to ({error.strerror}); the last checkpoint is whole. Make room "
            "there, then run the same command again"
        ) from error


def main(argv: Sequence[str] | None = None) -> None:
    arguments = cli.parser(
        "slf_jax.train",
        "Trains both stages of the cascade; run the same command again to resume.",
        [
            "python -m slf_jax.train --config configs/demo.py",
            "python -m slf_jax.train --config configs/base.py --config.data.dir=data/vox2/records",
            "python -m slf_jax.train --config configs/base.py --config.stage=base --config.parallel=pmap",
            "python -m slf_jax.train --config configs/base.py --config.workdir=runs/fine --init_from runs/base",
            "srun python -m slf_jax.train --config configs/base.py --config.distributed=true    (docs/scaling.md)",
        ],
    )
    arguments.add_argument("--init_from", metavar="RUN", default="", help="start from the EMA weights of another run")
    arguments.add_argument(
        "--skip-damaged", action="store_true", help="set a damaged checkpoint aside and go on from the one before it"
    )
    args, config = cli.parse_with_config(arguments, argv, RULES)
    check_config(config)
    config.init_from = args.init_from or config.init_from
    with parallel.processes(config):
        done = train(config, skip_damaged=args.skip_damaged)
        if parallel.is_main():
            _tell(done, config.workdir, sys.argv[1:] if argv is None else argv)


def _tell(done: bool, workdir: str, argv: Sequence[str]) -> None:
    if done:
        path = local_path(workdir)
        name = shlex.quote(str(path))
        print(f"{workdir}: trained. Previews: {path / 'samples'}; curves: tensorboard --logdir {name}, or")
        print(f"  python -m slf_jax.report --workdir {name}")
    else:
        again = [arg for arg in argv if arg != "--skip-damaged"]
        print(f"{workdir}: stopped and saved. To go on:\n  python -m slf_jax.train {shlex.join(again)}")


if __name__ == "__main__":
    cli.run(main)
