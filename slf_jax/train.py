"""Trains the cascade, one stage after the other: `python -m slf_jax.train --config configs/base.py`.

Running the same command again resumes. The run directory can be read without us: config.json, metrics.jsonl,
samples/*.png, tensorboard/ and checkpoints/.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from slf_jax import cascade, features, parallel
from slf_jax.monitor import Log, Preview
from slf_jax.state import Checkpoints, Meta, TrainState, check_same_run, init_state
from tfrecords import cli
from tfrecords.reader import Clips, batches
from tfrecords.writer import write_atomically

BUCKETS = 4  # of noise levels, each equally likely in training, for which the loss is reported apart


def train(config: ml_collections.ConfigDict) -> bool:
    """Trains what `config.stage` names; returns False if a signal ended it early (the state is saved).

    Raises `UserError` for what the user can mend.
    """
    names = cascade.STAGES if config.stage == "all" else (config.stage,)
    if not set(names) <= set(cascade.STAGES):
        raise cli.UserError(f"config.stage={config.stage!r} is none of: all, {', '.join(cascade.STAGES)}")
    parallel.use_compilation_cache(config.compilation_cache)
    mesh = parallel.make_mesh()
    for name in names:
        _check_batch(for_stage(config.train.batch_size, name))
    clips, held_out = Clips(config.data.dir, "train"), _held_out(config.data.dir)
    layout = features.make_layout(clips.schema)
    system = cascade.build(config, layout, clips.statistics)
    _check_rates(config.train, layout)
    meta = Meta(config, clips.schema, clips.statistics)
    workdir = Path(config.workdir)
    check_same_run(config, workdir)
    write_atomically(workdir / "config.json", config.to_json_best_effort(indent=2).encode())
    _describe(config, system, clips, held_out, mesh)
    steps = sum(for_stage(config.train.steps, name) for name in names)
    with Log(workdir, steps, config.train.log_every) as log, _signals() as stop, short_of_memory(config.train):
        done = all(train_stage(name, meta, system, clips, held_out, mesh, log, stop) for name in names)
    if not done:
        print(f"{workdir}: stopped and saved; run the same command again to go on")
        return False
    print(f"{workdir}: trained. Previews: {workdir / 'samples'}; curves: tensorboard --logdir {workdir}")
    return True


def train_stage(
    name: str, meta: Meta, system: cascade.System, clips: Clips, held_out: Clips | None,
    mesh: jax.sharding.Mesh, log: Log, stop: Callable[[], bool],
) -> bool:  # fmt: skip
    """One stage's life: state, restore, compile, loop, finish. Returns False if `stop` ended it early."""
    config, settings = meta.config, meta.config.train
    steps, batch_size = for_stage(settings.steps, name), for_stage(settings.batch_size, name)
    with Checkpoints(config.workdir, name, settings.keep) as checkpoints:
        # ---- state
        optimizer, schedule = make_optimizer(settings, name)
        root = jax.random.fold_in(jax.random.key(config.seed), cascade.STAGES.index(name))
        first = checkpoints.latest() or 0
        log.begin(name, min(first, steps), batch_size)
        if first >= steps:
            return True
        state = init_state(system.stages[name], optimizer, jax.random.fold_in(root, 0))
        if first:
            state = checkpoints.restore(first, state)
        state = parallel.replicate(mesh, state)
        key = parallel.replicate(mesh, jax.random.fold_in(root, 1))
        # ---- data: batch k is a function of the seed alone, so the step number is the whole position
        process = (jax.process_index(), jax.process_count())
        local = batch_size // process[1]
        stream = batches(clips, local, seed=config.seed, start=first, process=process, threads=config.data.threads)
        batch = parallel.split(mesh, config.parallel, next(stream))
        # ---- compile
        step = make_step(system, name, optimizer, schedule, settings)
        step = _compile(parallel.compile_step(step, mesh, config.parallel), state, batch, key, name)
        preview = Preview(config, system, name, held_out or clips)
        # ---- loop: metrics are read one step late, while the device works on the next
        pending = None
        for number in range(first + 1, steps + 1):
            state, metrics = step(state, batch, key)
            if number < steps:
                batch = parallel.split(mesh, config.parallel, next(stream))
            if pending is not None:
                log.step(number - 1, pending, last=False)
            pending = metrics
            ends, stopping = number == steps, stop()
            if ends or stopping or number % settings.checkpoint_every == 0:
                log.step(number, metrics, last=ends)  # raises before a bad state is saved
                pending = None
                checkpoints.save(state, meta)
            if stopping:
                return False
            if held_out and _due(number, steps, settings.validate_every):
                log.write(number, {"validation_loss": preview.loss(state.ema)})
            if _due(number, steps, settings.preview_every):
                log.picture(number, *preview.page(state.ema))
    return True


def make_step(
    system: cascade.System, name: str, optimizer: optax.GradientTransformation, schedule: optax.Schedule,
    settings: ml_collections.ConfigDict,
) -> Callable[[TrainState, Mapping, jax.Array], tuple[TrainState, dict]]:  # fmt: skip
    """One training step as one device sees it, with collectives over axis `"data"`."""
    stage = system.stages[name]
    edges = jnp.log(stage.levels(jnp.arange(1, BUCKETS) / BUCKETS))

    def step(state: TrainState, batch: Mapping, key: jax.Array) -> tuple[TrainState, dict]:
        count = len(batch["face"])
        device, devices = jax.lax.axis_index(parallel.AXIS), jax.lax.axis_size(parallel.AXIS)
        key = jax.random.fold_in(key, state.step)
        keys = parallel.item_keys(key, count)
        k_flip, k_drop, k_loss = jnp.moveaxis(jax.vmap(lambda k: jax.random.split(k, 3))(keys), 1, 0)
        faces = cascade.to_float(batch["face"])
        if settings.flip:
            mirrored = jax.vmap(jax.random.bernoulli)(k_flip)[:, None, None, None]
            faces = jnp.where(mirrored, faces[:, :, ::-1], faces)
        matrix, mask = system.features(batch)
        mask = features.drop(k_drop, mask, system.layout, settings.constituent_drop, settings.cond_drop)
        place = device * count + jnp.arange(count)
        dropout = jax.random.fold_in(jax.random.fold_in(key, 1), device)

        def mean_loss(params: Any) -> tuple[jax.Array, tuple]:
            loss, sigma = stage.loss(
                params, faces, matrix, mask, k_loss, place, devices * count,
                guide_drop=settings.guide_drop, dropout=dropout,
            )  # fmt: skip
            return loss.mean(), (loss, sigma)

        (mean, (loss, sigma)), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
        mean, grads = jax.lax.pmean((mean, grads), parallel.AXIS)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # Warm-up: a young average forgets its random start quickly.
        decay = jnp.minimum(settings.ema, (1 + state.step) / (10 + state.step))
        ema = optax.incremental_update(params, state.ema, 1 - decay)
        bucket = jnp.searchsorted(edges, jnp.log(sigma))
        sums = jnp.zeros((2, BUCKETS)).at[:, bucket].add(jnp.stack([loss, jnp.ones(count)]))
        sums = jax.lax.psum(sums, parallel.AXIS)
        metrics = {
            "loss": mean,
            "loss_by_sigma": sums[0] / jnp.maximum(sums[1], 1),
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": schedule(state.step),
        }
        return TrainState(state.step + 1, params, ema, opt_state), metrics

    return step


def make_optimizer(
    settings: ml_collections.ConfigDict, name: str
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """AdamW behind gradient clipping, and its learning rate: linear warm-up, then cosine decay."""
    peak, steps = for_stage(settings.learning_rate, name), for_stage(settings.steps, name)
    warmup = min(settings.warmup, steps // 2)
    schedule = optax.warmup_cosine_decay_schedule(0.0, peak, warmup, steps + 1, settings.final_rate * peak)
    adamw = optax.adamw(schedule, b2=0.99, weight_decay=settings.weight_decay)
    return optax.chain(optax.clip_by_global_norm(settings.clip), adamw), schedule


def for_stage(value: Any, name: str) -> Any:
    """A setting of one stage: a pair is (base, upsampler), one number serves both."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return values[cascade.STAGES.index(name) % len(values)]


def _due(step: int, steps: int, every: int) -> bool:
    """Every so many steps, and at the end of a stage that is long enough for one."""
    return step % every == 0 or step == steps >= every


def _check_batch(batch_size: int) -> None:
    devices = jax.device_count()
    if batch_size < 1 or batch_size % devices:
        raise cli.UserError(
            f"config.train.batch_size={batch_size} does not divide over {devices} devices; "
            f"choose a multiple of {devices}"
        )


def _check_rates(settings: ml_collections.ConfigDict, layout: features.Layout) -> None:
    """Raises `UserError` if something is to be withheld that does not exist, or at no share."""
    features.check_inputs(tuple(settings.constituent_drop), layout)
    rates = {f"constituent_drop.{name}": rate for name, rate in settings.constituent_drop.items()}
    for name, rate in {**rates, "cond_drop": settings.cond_drop, "guide_drop": settings.guide_drop}.items():
        if not 0 <= rate <= 1:
            raise cli.UserError(f"config.train.{name}={rate}: a share lies between 0 and 1")


def _held_out(directory: str) -> Clips | None:
    """The validation split, if the dataset has one."""
    try:
        return Clips(directory, "validation")
    except cli.UserError:
        return None


def _describe(
    config: ml_collections.ConfigDict, system: cascade.System, clips: Clips, held_out: Clips | None,
    mesh: jax.sharding.Mesh,
) -> None:  # fmt: skip
    kind = mesh.devices.flat[0].device_kind
    have = {part.name for part in clips.schema.constituents} | {"age", *clips.schema.labels}
    missing = [name for name in system.inputs if name not in have]
    print(f"data       {config.data.dir}: {len(clips)} clips to train on, {len(held_out or ())} held out")
    print(
        f"inputs     {', '.join(system.inputs)}"
        + (f" (masked, not in the data: {', '.join(missing)})" if missing else "")
    )
    print(f"devices    {mesh.size} x {kind} by {config.parallel}, {jax.process_count()} process(es)")


def _compile(step: Callable, state: TrainState, batch: Mapping, key: jax.Array, name: str) -> Callable:
    """Compiles the step ahead of time and says what it costs."""
    start = time.perf_counter()
    lowered = step.lower(state, batch, key)
    compiled = lowered.compile()
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    flops = (lowered.cost_analysis() or {}).get("flops", float("nan"))
    print(
        f"{name:10} {count / 1e6:.2f} M parameters, {flops / 1e9:.1f} GFLOP a step on each device, "
        f"compiled in {time.perf_counter() - start:.1f} s"
    )
    return compiled


@contextlib.contextmanager
def _signals() -> Iterator[Callable[[], bool]]:
    """While open, SIGTERM and SIGINT only set what the yielded function tells."""
    came: list[int] = []
    before = {s: signal.signal(s, lambda number, _: came.append(number)) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def short_of_memory(settings: ml_collections.ConfigDict) -> Iterator[None]:
    """Tells in one line that what runs inside does not fit the device."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise cli.UserError(
            f"out of memory: lower config.train.batch_size={settings.batch_size}, or set config.model.*.remat=true"
        ) from error


def main(argv: Sequence[str] | None = None) -> None:
    arguments = cli.parser(
        "slf_jax.train",
        "Trains both stages of the cascade; run the same command again to resume.",
        [
            "python -m slf_jax.train --config configs/demo.py",
            "python -m slf_jax.train --config configs/base.py --config.data.dir=data/vox2/records",
            "python -m slf_jax.train --config configs/base.py --config.stage=base --config.parallel=pmap",
        ],
    )
    _, config = cli.parse_with_config(arguments, argv)
    train(config)


if __name__ == "__main__":
    cli.run(main)
