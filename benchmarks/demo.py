"""Times each part of the demo: `python benchmarks/demo.py` after `make demo` (or with --data and --config).

Prints the import time of the trainer, the reader's throughput in records/s (one thread, warm cache), the training
throughput of each stage in images/s, and the milliseconds per network evaluation and image while sampling.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import time

import cost
import jax
import numpy as np

from slf_common.config import load_config
from slf_jax import features
from slf_jax.cascade.images import to_float
from slf_jax.cascade.settings import SampleSettings, sample_settings
from slf_jax.cascade.sizes import STAGES
from slf_jax.cascade.system import System, build_system, person_noise
from slf_jax.diffusion.guidance import area_average
from tfrecords.reader import Clips, batches, stack


def time_call(function, repeats: int) -> float:
    """Mean seconds per call, after a warm-up call."""
    jax.block_until_ready(function())
    start = time.perf_counter()
    for _ in range(repeats):
        result = function()
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / repeats


def time_import() -> float:
    code = "import time; t = time.perf_counter(); import slf_jax.train; print(time.perf_counter() - t)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    return min(float(run.stdout) for run in runs)


def time_reader(clips: Clips) -> dict[str, float]:
    """Records/s read one by one by index, and in shuffled batches of 32 through Grain, on one thread."""
    count = min(len(clips), 960)
    [clips[i] for i in range(count)]
    start = time.perf_counter()
    [clips[i] for i in range(count)]
    by_index = count / (time.perf_counter() - start)
    stream = batches(clips, 32, seed=0, threads=1)
    next(stream)
    start = time.perf_counter()
    for _ in itertools.islice(stream, count // 32):
        pass
    return {"by index": by_index, "batches": count // 32 * 32 / (time.perf_counter() - start)}


def time_training(config, system: System, clips: Clips, name: str, repeats: int) -> float:
    """Images/s of the compiled training step."""
    size = config.train[name].batch_size
    return size / time_call(cost.make_training(config, system, name, next(batches(clips, size, seed=0))), repeats)


def time_sampling(system: System, clips: Clips, name: str, settings: SampleSettings, repeats: int) -> float:
    """Milliseconds per network evaluation and image; the two branches of guidance count as two evaluations."""
    people = 16
    batch = stack([clips[i % len(clips)] for i in range(people)])
    params = jax.jit(system.stages[name].init)(jax.random.key(0))
    noise = person_noise(0, np.arange(people))
    low = area_average(to_float(batch["face"]), system.stages[name].lowres_size)
    program = jax.jit(
        lambda scales: system.sample({name: params}, batch, low, np.ones(people), noise, scales, settings, (name,))
    )
    evaluations = 2 * settings.evaluations[name] * people
    return 1e3 * time_call(lambda: program(np.ones((1, 2), np.float32)), repeats) / evaluations


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--config", default="configs/demo.py", help="default: configs/demo.py")
    arguments.add_argument("--data", help="dataset folder (default: the config's)")
    arguments.add_argument("--repeats", type=int, default=20, help="timed training steps (default: 20)")
    args = arguments.parse_args()
    config = load_config(args.config)
    clips = Clips(args.data or config.data.dir)
    system = build_system(config, features.make_layout(clips.schema), clips.statistics)
    settings = sample_settings(config)
    print(f"device                     {jax.devices()[0].device_kind}")
    print(f"import slf_jax.train       {time_import():.2f} s")
    for kind, rate in time_reader(clips).items():
        print(f"reader, {kind:18} {rate:.0f} records/s")
    for name in STAGES:
        print(f"train {name:20} {time_training(config, system, clips, name, args.repeats):.1f} images/s")
    for name in STAGES:
        print(f"sample {name:19} {time_sampling(system, clips, name, settings, 3):.2f} ms per evaluation and image")


if __name__ == "__main__":
    main()
