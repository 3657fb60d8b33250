"""Compares a sweep in one program with loops over the scales: `python benchmarks/sweep.py [--config configs/base.py]`.

Samples 16 people at nine guidance scales in three ways: one program for all scales; one program for a single scale,
called nine times; and nine programs with their scale compiled in as a constant. Prints how many programs each way
compiles, the seconds to prepare, the seconds per sweep afterwards (median), and the device memory that a program takes
besides the parameters. Parameters and features are random: speed does not depend on them, and no dataset is needed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from cost import make_clips, make_trained
from tqdm import tqdm

from slf_common import cli
from slf_common.config import load_config
from slf_jax.cascade.images import make_thumbnail, to_float, to_uint8
from slf_jax.cascade.settings import sample_settings
from slf_jax.cascade.system import person_noise
from slf_jax.inference.sampler import Sampler
from slf_jax.inference.scales import Scale
from slf_jax.inference.trained import Trained

SCALES = tuple((float(s), float(s)) for s in range(9))


class Compilations:
    """Counts the programs that XLA compiles."""

    def __init__(self) -> None:
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, *_: object, **__: object) -> None:
        self.count += "backend_compile" in event


def compile_for_scale(trained: Trained, clips: dict, numbers: np.ndarray, scale: Scale) -> jax.stages.Compiled:
    """Compiles a program with this scale as a constant."""
    settings = sample_settings(trained.meta.config)

    def run(params: dict, clips: dict, numbers: jax.Array) -> jax.Array:
        thumbnails = make_thumbnail(to_float(clips["face"]))
        noise = person_noise(0, numbers)
        ones = jnp.ones(len(thumbnails))
        images = trained.system.sample(params, clips, thumbnails, ones, noise, jnp.array([scale]), settings)
        return to_uint8(images)

    return jax.jit(run).lower(trained.params, clips, numbers).compile()


def make_variants(config: ml_collections.ConfigDict, people: int) -> dict[str, tuple[Callable, Callable]]:
    """Returns two functions per variant: one compiles and returns the memory in bytes, the other runs a sweep."""
    trained = make_trained(config)
    clips, numbers = make_clips(trained.system.layout, people), np.arange(people)
    all_scales, one_scale, programs = Sampler(trained, chunk=people), Sampler(trained, chunk=people), []

    def prepare(sampler: Sampler, scales: tuple) -> int:
        sampler(clips, numbers, scales, 0)
        (program,) = (program for programs in sampler._programs.values() for program in programs.values())
        return _memory(program)

    def compile_all() -> int:
        programs.extend(compile_for_scale(trained, clips, numbers, scale) for scale in tqdm(SCALES, leave=False))
        return max(_memory(program) for program in programs)

    return {
        "one program": (lambda: prepare(all_scales, SCALES), lambda: all_scales(clips, numbers, SCALES, 0)),
        "one in a loop": (
            lambda: prepare(one_scale, SCALES[:1]),
            lambda: np.concatenate([one_scale(clips, numbers, (scale,), 0) for scale in SCALES]),
        ),
        "nine programs": (
            compile_all,
            lambda: np.concatenate([np.asarray(run(trained.params, clips, numbers)) for run in programs]),
        ),
    }


def _memory(program: jax.stages.Compiled) -> int:
    sizes = program.memory_analysis()
    return sizes.temp_size_in_bytes + sizes.output_size_in_bytes


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--config", default="configs/demo.py", help="default: configs/demo.py")
    arguments.add_argument("--people", type=int, default=16, help="number of people (default: 16)")
    arguments.add_argument("--steps", type=int, help="sampling steps (default: the config's)")
    arguments.add_argument("--repeats", type=int, default=3, help="timed sweeps per variant (default: 3)")
    arguments.add_argument("--skip-nine", action="store_true", help="leave out the nine programs (long to compile)")
    args = arguments.parse_args()
    config, compilations = load_config(args.config), Compilations()
    config.sample.steps = args.steps or config.sample.steps
    print(
        f"{len(SCALES)} scales x {args.people} people, {args.config}, {config.sample.steps} steps, "
        f"{jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}"
    )
    variants, times, prepared = make_variants(config, args.people), {}, {}
    if args.skip_nine:
        del variants["nine programs"]
    for name, (prepare, run) in variants.items():
        before, start = compilations.count, time.perf_counter()
        memory = prepare()
        prepared[name] = (compilations.count - before, time.perf_counter() - start, memory)
        times[name] = []
        run()
    for _ in tqdm(range(args.repeats), desc="alternating", leave=False):
        for name, (_, run) in variants.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    print(f"{'':16}{'compiled':>9}{'preparing (s)':>15}{'sweep (s)':>14}{'ratio':>8}{'memory (MB)':>12}")
    baseline = statistics.median(times["one program"])
    for name, (count, elapsed, memory) in prepared.items():
        median = statistics.median(times[name])
        print(f"{name:16}{count:9}{elapsed:15.1f}{median:14.2f}{median / baseline:8.2f}{memory / 1e6:12.0f}")


if __name__ == "__main__":
    cli.run(main)
