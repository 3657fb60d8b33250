"""A sweep as one program against a loop over its scales: `python benchmarks/sweep.py [--config configs/base.py]`.

Nine scales x 16 people. Random parameters and made-up features: speed does not depend on them, and no data set is
needed. Compared are one program for all scales; one program for one scale, called nine times; and nine programs, each
with its scale built in. Seconds with compiling and without (median), programs compiled, and the memory that the program
takes on a device beside its parameters.
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

SCALES = tuple((float(s), float(s)) for s in range(9))


class Compilations:
    """Counts the programs that XLA compiles."""

    def __init__(self) -> None:
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, *_: object, **__: object) -> None:
        self.count += "backend_compile" in event


def built_in(trained, clips: dict, numbers: np.ndarray, scale: Scale) -> jax.stages.Compiled:
    """A program of its own for one scale."""
    settings = sample_settings(trained.meta.config)

    def run(params: dict, clips: dict, numbers: jax.Array) -> jax.Array:
        thumbnails = make_thumbnail(to_float(clips["face"]))
        noise = person_noise(0, numbers)
        ones = jnp.ones(len(thumbnails))
        images = trained.system.sample(params, clips, thumbnails, ones, noise, jnp.array([scale]), settings)
        return to_uint8(images)

    return jax.jit(run).lower(trained.params, clips, numbers).compile()


def ways(config: ml_collections.ConfigDict, people: int) -> dict[str, tuple[Callable, Callable]]:
    """For each way: what prepares it and gives the memory in bytes, and what then runs a whole sweep."""
    trained = make_trained(config)
    clips, numbers = make_clips(trained.system.layout, people), np.arange(people)
    together, apart, programs = Sampler(trained, chunk=people), Sampler(trained, chunk=people), []

    def held(sampler: Sampler) -> int:
        (program,) = (program for programs in sampler._programs.values() for program in programs.values())
        return _bytes(program)

    def prepare(sampler: Sampler, scales: tuple) -> int:
        sampler(clips, numbers, scales, 0)
        return held(sampler)

    def build() -> int:
        programs.extend(built_in(trained, clips, numbers, scale) for scale in tqdm(SCALES, leave=False))
        return max(_bytes(program) for program in programs)

    return {
        "one program": (lambda: prepare(together, SCALES), lambda: together(clips, numbers, SCALES, 0)),
        "a loop": (
            lambda: prepare(apart, SCALES[:1]),
            lambda: np.concatenate([apart(clips, numbers, (scale,), 0) for scale in SCALES]),
        ),
        "nine programs": (
            build,
            lambda: np.concatenate([np.asarray(run(trained.params, clips, numbers)) for run in programs]),
        ),
    }


def _bytes(program: jax.stages.Compiled) -> int:
    use = program.memory_analysis()
    return use.temp_size_in_bytes + use.output_size_in_bytes


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--config", default="configs/demo.py")
    arguments.add_argument("--people", type=int, default=16)
    arguments.add_argument("--steps", type=int, help="of the sampler (default: the config's)")
    arguments.add_argument("--repeats", type=int, default=3)
    args = arguments.parse_args()
    config, compilations = load_config(args.config), Compilations()
    config.sample.steps = args.steps or config.sample.steps
    print(
        f"{len(SCALES)} scales x {args.people} people, {args.config}, {config.sample.steps} steps, "
        f"{jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}"
    )
    cases, times, lines = ways(config, args.people), {}, {}
    for name, (prepare, run) in cases.items():
        before, start = compilations.count, time.perf_counter()
        memory = prepare()
        lines[name] = (compilations.count - before, time.perf_counter() - start, memory)
        times[name] = []
        run()
    for _ in tqdm(range(args.repeats), desc="alternating", leave=False):
        for name, (_, run) in cases.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    print(f"{'':16}{'compiled':>9}{'prepared in s':>15}{'a sweep in s':>14}{'ratio':>8}{'memory, MB':>12}")
    first = statistics.median(times["one program"])
    for name, (count, prepared, memory) in lines.items():
        median = statistics.median(times[name])
        print(f"{name:16}{count:9}{prepared:15.1f}{median:14.2f}{median / first:8.2f}{memory / 1e6:12.0f}")


if __name__ == "__main__":
    cli.run(main)
