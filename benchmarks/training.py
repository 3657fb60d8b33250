"""Where the time of a training goes: `python benchmarks/training.py [PART ...]` (default: all but `save`).

- `split`: seconds of a step: the host's (dispatch), the data's (waiting for records, moving them), and the rest,
  in which the host waits for the devices. Needs the demo's records, or `--data`.
- `reader`: records/s with one and two threads, from a warm cache.
- `scaling`: the same global batch over 1, 2, 4, 8 virtual devices of this CPU, which has no more cores for them: what
  more it takes is the overhead of the SPMD form.
- `dispatch`: microseconds the host spends on handing over one step that does next to nothing, with as many arrays as
  the demo's, by `jit`+`shard_map` and by `pmap`.
- `start`: seconds from the command to the first step, with an empty and with a full compilation cache.
- `save`: seconds and bytes of saving and restoring `configs/base.py`'s state (about 1 GB in memory).
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
from slf_jax.training.state import init_state
from slf_jax.training.step import make_step
from tfrecords.reader import Clips, batches

STEPS = 30


def split(config, name: str) -> None:
    """A stage's training loop, its parts timed apart."""
    clips = Clips(config.data.dir)
    system = build_system(config, features.make_layout(clips.schema), clips.statistics)
    size, mesh = config.train[name].batch_size, distributed.make_mesh()
    optimizer, schedule = make_optimizer(config.train, name)
    state, key = distributed.replicate(
        mesh, (init_state(system.stages[name], optimizer, jax.random.key(0)), jax.random.key(1))
    )
    feed = InputPipeline(
        clips, size, 1, seed=0, first=0, threads=config.data.threads, mesh=mesh, mode=config.parallel,
        stop=lambda: False, mask=system.mask_unused_inputs,
    )  # fmt: skip
    step = make_step(system, name, optimizer, schedule, config.train)
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
        f"split {name}: {1e3 * total:.1f} ms a step of {size}: {parts}; waiting for records "
        f"{100 * (feed.waited - waited) / STEPS / total:.2f} %",
        flush=True,
    )


def reader(config) -> None:
    clips = Clips(config.data.dir)
    for threads in (1, 2):
        stream = batches(clips, 32, seed=0, threads=threads)
        next(stream)
        count, start = min(len(clips), 960) // 32, time.perf_counter()
        for _ in itertools.islice(stream, count):
            pass
        print(f"reader, {threads} threads: {count * 32 / (time.perf_counter() - start):.0f} records/s", flush=True)


def scaling_once(devices: int) -> None:
    """Prints the seconds of a step of the demo's base stage; in a process of its own."""
    config = load_config("configs/demo.py")
    system = cost.make_system(config)
    once = cost.make_training(config, system, "base", cost.make_clips(system.layout, 16))
    for _ in range(3):
        jax.block_until_ready(once())
    seconds = []
    for _ in range(STEPS):
        start = time.perf_counter()
        jax.block_until_ready(once())
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"devices": devices, "seconds": float(np.median(seconds))}))


def scaling() -> None:
    alone = None
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
        alone = alone or seconds
        print(
            f"scaling, {devices} devices: {1e3 * seconds:.1f} ms a step, {100 * (seconds / alone - 1):+.0f} %",
            flush=True,
        )


def dispatch(config) -> None:
    system, mesh = cost.make_system(config), distributed.make_mesh()
    optimizer, _ = make_optimizer(config.train, "base")
    like = jax.eval_shape(lambda: init_state(system.stages["base"], optimizer, jax.random.key(0)))
    small = jax.tree.map(lambda x: np.zeros(x.shape[:1] and (1,), x.dtype), like)
    clips = {key: value[None] for key, value in cost.make_clips(system.layout, 8).items()}

    def nothing(state, batch, key):
        return jax.tree.map(lambda x: x + 1, state), {"loss": jax.lax.pmean(batch["age"].sum(), distributed.AXIS)}

    for mode in ("shard_map", "pmap"):
        state, key = distributed.replicate(mesh, (small, jax.random.key(0)))
        batch = distributed.split_steps(mesh, mode, clips)
        step = distributed.compile_steps(nothing, mesh, mode).lower(state, batch, key).compile()
        seconds = []
        for _ in range(300):
            start = time.perf_counter()
            state, metrics = step(state, batch, key)
            seconds.append(time.perf_counter() - start)
            jax.block_until_ready(metrics)
        print(
            f"dispatch by {mode}: {1e6 * np.median(seconds):.0f} us, {len(jax.tree.leaves(small))} arrays", flush=True
        )


def start(config_path: str, data: str) -> None:
    """A whole training of one step of each stage, twice."""
    with tempfile.TemporaryDirectory() as folder:
        for cache in ("empty", "full"):
            begun = time.perf_counter()
            command = [
                sys.executable, "-m", "slf_jax.train", "--config", config_path, f"--config.data.dir={data}",
                f"--config.workdir={folder}/{cache}", f"--config.compilation_cache={folder}/xla",
                "--config.train.base.steps=1", "--config.train.log_every=1", "--config.stage=base",
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            compiled = [line for line in done.stdout.splitlines() if "compiled in" in line]
            seconds = time.perf_counter() - begun
            print(
                f"start, cache {cache}: {seconds:.1f} s to the end of step 1; {compiled[0].split(', ')[-1]}", flush=True
            )


def save() -> None:
    config = load_config("configs/base.py")
    system = cost.make_system(config)
    trained = cost.make_trained(config)
    for name in STAGES:
        optimizer, _ = make_optimizer(config.train, name)
        state = init_state(system.stages[name], optimizer, jax.random.key(0))
        meta = Meta(config, trained.meta.schema, system.statistics, {})
        with tempfile.TemporaryDirectory() as folder:
            begun = time.perf_counter()
            with Checkpoints(folder, name, max_to_keep=1) as checkpoints:
                checkpoints.save(state, meta)
                blocked = time.perf_counter() - begun
            saved = time.perf_counter() - begun
            size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
            begun = time.perf_counter()
            with Checkpoints(folder, name) as checkpoints:
                checkpoints.restore(0, state)
            restored = time.perf_counter() - begun
        print(
            f"save {name}: {size / 1e9:.2f} GB, {blocked:.1f} s until training goes on, {saved:.1f} s in all; "
            f"restored and checked in {restored:.1f} s",
            flush=True,
        )


def main() -> None:
    parts = ("split", "reader", "scaling", "dispatch", "start", "save")
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("parts", nargs="*", choices=[*parts, []], metavar="PART", help=", ".join(parts))
    arguments.add_argument("--config", default="configs/demo.py")
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
