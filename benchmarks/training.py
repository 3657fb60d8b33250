"""Where training time goes: `python benchmarks/training.py [PART ...]` (default: all but `save`).

- `split`: milliseconds per step spent on dispatch by the host, on data (waiting for records and transferring them), and
  waiting for the device. Needs the demo's records, or `--data`.
- `reader`: records/s with one and two threads, from a warm cache.
- `scaling`: the same global batch over 1, 2, 4 and 8 virtual devices of this CPU. They share its cores, so any extra
  time is the overhead of SPMD.
- `dispatch`: microseconds that the host takes to dispatch a near-empty step with as many arrays as the demo's, with
  `jit` and `shard_map` and with `pmap`.
- `start`: seconds from the command to the end of the first step, with an empty and a filled compilation cache.
- `save`: seconds to save and restore the state of `configs/base.py` (about 1 GB in memory), and its size on disk.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cost
import jax
import numpy as np

from slf_common import cli
from slf_common.config import load_config
from slf_jax import distributed, features
from slf_jax.cascade.sizes import STAGES
from slf_jax.cascade.system import build_system
from slf_jax.training.checkpoints import Checkpoints, Meta
from slf_jax.training.input_pipeline import InputPipeline
from slf_jax.training.optimizer import make_optimizer
from slf_jax.training.settings import train_settings
from slf_jax.training.state import init_state
from slf_jax.training.step import make_step
from tfrecords.reader import Clips, batches

STEPS = 30


def split(config, name: str) -> None:
    """Times each part of a stage's training loop."""
    clips = Clips(config.data.dir)
    system = build_system(config, features.make_layout(clips.schema), clips.statistics)
    size, mesh = config.train[name].batch_size, distributed.make_mesh()
    settings = train_settings(config, name)
    optimizer, schedule = make_optimizer(settings)
    state, key = distributed.replicate(
        mesh, (init_state(system.stages[name], optimizer, jax.random.key(0)), jax.random.key(1))
    )
    feed = InputPipeline(
        clips, size, 1, seed=0, first=0, threads=config.data.threads, mesh=mesh, mode=config.parallel,
        stop=lambda: False, mask=system.mask_unused_inputs,
    )  # fmt: skip
    step = make_step(system, name, optimizer, schedule, settings)
    step = distributed.compile_steps(step, mesh, config.parallel)
    state, pending = step(state, next(feed), key)
    jax.block_until_ready(pending)
    spent, start = dict.fromkeys(("dispatch", "data", "device"), 0.0), time.perf_counter()
    waited, batch = feed.waited, next(feed)
    for _ in range(STEPS):
        marks = [time.perf_counter()]
        state, metrics = step(state, batch, key)
        marks.append(time.perf_counter())
        batch = next(feed)
        marks.append(time.perf_counter())
        jax.device_get(pending)
        marks.append(time.perf_counter())
        pending = metrics
        for part, seconds in zip(spent, np.diff(marks), strict=True):
            spent[part] += seconds
    jax.block_until_ready(pending)
    total = (time.perf_counter() - start) / STEPS
    parts = ", ".join(f"{part} {1e3 * seconds / STEPS:.2f} ms" for part, seconds in spent.items())
    print(
        f"split {name}: {1e3 * total:.1f} ms per step (batch {size}): {parts}; waiting for records "
        f"{100 * (feed.waited - waited) / STEPS / total:.2f} %",
        flush=True,
    )


def reader(config) -> None:
    """Times the reader alone."""
    clips = Clips(config.data.dir)
    for threads in (1, 2):
        stream = batches(clips, 32, seed=0, threads=threads)
        next(stream)
        count, start = min(len(clips), 960) // 32, time.perf_counter()
        for _ in itertools.islice(stream, count):
            pass
        print(f"reader, {threads} thread(s): {count * 32 / (time.perf_counter() - start):.0f} records/s", flush=True)


def scaling_once(devices: int) -> None:
    """Prints the median seconds per step of the demo's base stage; runs in its own process."""
    config = load_config("configs/demo.py")
    system = cost.make_system(config)
    run_step = cost.make_training(config, system, "base", cost.make_clips(system.layout, 16))
    for _ in range(3):
        jax.block_until_ready(run_step())
    seconds = []
    for _ in range(STEPS):
        start = time.perf_counter()
        jax.block_until_ready(run_step())
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"devices": devices, "seconds": float(np.median(seconds))}))


def scaling() -> None:
    """Times the same step over 1 to 8 virtual devices, each count in its own process."""
    baseline = None
    for devices in (1, 2, 4, 8):
        program = (
            f"import sys, jax; sys.path.insert(0, 'benchmarks'); jax.config.update('jax_num_cpu_devices', {devices});"
            f"import training; training.scaling_once({devices})"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True,
            cwd=Path(__file__).parents[1],
        )  # fmt: skip
        seconds = json.loads(done.stdout.splitlines()[-1])["seconds"]
        baseline = baseline or seconds
        print(
            f"scaling, {devices} devices: {1e3 * seconds:.1f} ms per step, {100 * (seconds / baseline - 1):+.0f} %",
            flush=True,
        )


def dispatch(config) -> None:
    """Times the dispatch of a step that computes almost nothing."""
    system, mesh = cost.make_system(config), distributed.make_mesh()
    optimizer, _ = make_optimizer(train_settings(config, "base"))
    shapes = jax.eval_shape(lambda: init_state(system.stages["base"], optimizer, jax.random.key(0)))
    small = jax.tree.map(lambda x: np.zeros(x.shape[:1] and (1,), x.dtype), shapes)
    clips = {key: value[None] for key, value in cost.make_clips(system.layout, 8).items()}

    def near_empty_step(state, batch, key):
        return jax.tree.map(lambda x: x + 1, state), {"loss": jax.lax.pmean(batch["age"].sum(), distributed.AXIS)}

    for mode in ("shard_map", "pmap"):
        state, key = distributed.replicate(mesh, (small, jax.random.key(0)))
        batch = distributed.split_steps(mesh, mode, clips)
        step = distributed.compile_steps(near_empty_step, mesh, mode).lower(state, batch, key).compile()
        seconds = []
        for _ in range(300):
            start = time.perf_counter()
            state, metrics = step(state, batch, key)
            seconds.append(time.perf_counter() - start)
            jax.block_until_ready(metrics)
        print(
            f"dispatch with {mode}: {1e6 * np.median(seconds):.0f} us, {len(jax.tree.leaves(small))} arrays", flush=True
        )


def start(config_path: str, data: str) -> None:
    """Runs a training of one step twice, each time in a new process with the same compilation cache."""
    with tempfile.TemporaryDirectory() as folder:
        for cache in ("empty", "filled"):
            started = time.perf_counter()
            command = [
                sys.executable, "-m", "slf_jax.train", "--config", config_path, f"--config.data.dir={data}",
                f"--config.workdir={folder}/{cache}", f"--config.compilation_cache={folder}/xla",
                "--config.train.base.steps=1", "--config.train.log_every=1", "--config.stage=base",
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            compiled = [line for line in done.stdout.splitlines() if "compiled in" in line]
            seconds = time.perf_counter() - started
            print(
                f"start, {cache} cache: {seconds:.1f} s to the end of step 1; {compiled[0].split(', ')[-1]}", flush=True
            )


def save() -> None:
    """Times saving and restoring a checkpoint of each stage of `configs/base.py`."""
    config = load_config("configs/base.py")
    system = cost.make_system(config)
    trained = cost.make_trained(config)
    for name in STAGES:
        optimizer, _ = make_optimizer(train_settings(config, name))
        state = init_state(system.stages[name], optimizer, jax.random.key(0))
        meta = Meta(config, trained.meta.schema, system.statistics, {})
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            with Checkpoints(folder, name, max_to_keep=1) as checkpoints:
                checkpoints.save(state, meta)
                blocked = time.perf_counter() - started
            saved = time.perf_counter() - started
            size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
            started = time.perf_counter()
            with Checkpoints(folder, name) as checkpoints:
                checkpoints.restore(0, state)
            restored = time.perf_counter() - started
        print(
            f"save {name}: {size / 1e9:.2f} GB, {blocked:.1f} s until training continues, {saved:.1f} s in total; "
            f"restored and verified in {restored:.1f} s",
            flush=True,
        )


def main() -> None:
    parts = ("split", "reader", "scaling", "dispatch", "start", "save")
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument(
        "parts", nargs="*", choices=[*parts, []], metavar="PART", help=f"{', '.join(parts)} (default: all but save)"
    )
    arguments.add_argument("--config", default="configs/demo.py", help="default: configs/demo.py")
    arguments.add_argument("--data", help="dataset folder (default: the config's)")
    args = arguments.parse_args()
    config = load_config(args.config, {"data.dir": args.data} if args.data else {})
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    calls = {
        "split": lambda: [split(config, name) for name in STAGES],
        "reader": lambda: reader(config),
        "scaling": scaling,
        "dispatch": lambda: dispatch(config),
        "start": lambda: start(args.config, config.data.dir),
        "save": save,
    }
    for part in args.parts or parts[:-1]:
        calls[part]()


if __name__ == "__main__":
    cli.run(main)
