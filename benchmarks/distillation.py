"""Students against their teacher: `python benchmarks/distillation.py --workdir runs/demo --students runs/demo_fast`.

Sweeps nine scales x 16 people with each system, in turn and from the same noise. Prints the seconds of a sweep (median)
and its GFLOP as XLA counts them in the compiled program, both also as shares of the teacher's, and by scale the PSNR of
the student's faces to the teacher's.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from sweep import SCALES
from tqdm import tqdm

from slf_common import cli
from slf_common.errors import UserError
from slf_common.files import local_path, write_atomically
from slf_jax.cascade.images import make_thumbnail, to_float
from slf_jax.cascade.settings import sample_settings
from slf_jax.cascade.system import person_noise
from slf_jax.inference import arguments
from slf_jax.inference.people import choose_people, person_number
from slf_jax.inference.sampler import Sampler
from slf_jax.inference.scales import format_scale
from slf_jax.inference.trained import Trained, load
from tfrecords.reader import stack


def flops(trained: Trained, clips: Mapping[str, np.ndarray], numbers: np.ndarray) -> float:
    """Floating-point operations of a sweep. Its loops are unrolled, since XLA counts the body of a loop once."""
    settings = sample_settings(trained.meta.config)

    def run(params: dict, clips: dict, numbers: jax.Array) -> jax.Array:
        thumbnails, noise = make_thumbnail(to_float(clips["face"])), person_noise(0, numbers)
        ones = jnp.ones(len(thumbnails))
        return trained.system.sample(params, clips, thumbnails, ones, noise, jnp.array(SCALES), settings)

    with mock.patch.object(jax.lax, "scan", functools.partial(jax.lax.scan, unroll=True)):
        lowered = jax.jit(run).lower(trained.params, trained.system.mask_unused_inputs(clips), numbers)
    return lowered.compile().cost_analysis()["flops"]


def psnr(images: np.ndarray, references: np.ndarray) -> list[float]:
    """PSNR (dB) at each scale of faces uint8 [S, B, ...], over all people."""
    errors = np.square(images.astype(float) - references).reshape(len(images), -1).mean(1)
    return (10 * np.log10(255**2 / np.maximum(errors, 1e-9))).tolist()


def measure(systems: Mapping[str, Trained], args: argparse.Namespace) -> dict[str, dict]:
    """The figures of each system; the first one is the teacher."""
    first = next(iter(systems.values()))
    people = choose_people(arguments.open_clips(first, args, ()), args.people)
    clips, numbers = stack(people), np.array([person_number(clip["clip_id"]) for clip in people])
    samplers = {name: Sampler(trained, chunk=len(numbers)) for name, trained in systems.items()}
    run = {name: functools.partial(each, clips, numbers, SCALES, 0) for name, each in samplers.items()}
    faces = {name: run[name]()[:, :, 0] for name in tqdm(run, desc="compiling", leave=False)}
    times: dict[str, list[float]] = {name: [] for name in run}
    for _ in tqdm(range(args.repeats), desc="alternating", leave=False):
        for name, sweep in run.items():
            start = time.perf_counter()
            sweep()
            times[name].append(time.perf_counter() - start)
    teacher = next(iter(faces.values()))
    keys = [format_scale(scale) for scale in SCALES]
    return {
        name: {
            "steps": samplers[name].settings.steps,
            "seconds": statistics.median(times[name]),
            "flops": flops(trained, clips, numbers),
            "psnr_to_teacher": dict(zip(keys, psnr(faces[name], teacher), strict=True)),
        }
        for name, trained in systems.items()
    }


def table(found: Mapping[str, Mapping]) -> str:
    first, *students = found.values()
    scales = first["psnr_to_teacher"]
    lines = [f"{'':24}{'steps':>6}{'sweep (s)':>10}{'ratio':>7}{'GFLOP':>8}{'ratio':>7}  PSNR to the teacher at scale"]
    lines.append(" " * 64 + "".join(f"{scale:>6}" for scale in scales))
    for name, each in found.items():
        ratios = [each[key] / first[key] for key in ("seconds", "flops")]
        label = Path(name).name[:23]
        row = f"{label:24}{each['steps']:6}{each['seconds']:10.2f}{ratios[0]:7.2f}{each['flops'] / 1e9:8.0f}"
        values = each["psnr_to_teacher"].values() if each in students else ()
        lines.append(f"{row}{ratios[1]:7.2f}  " + "".join(f"{value:6.1f}" for value in values))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, type=arguments.parse_source, help="the teacher")
    parser.add_argument("--students", required=True, help="comma-separated run directories of slf_jax.distill")
    parser.add_argument("--data", default="", help="dataset folder (default: the teacher's)")
    parser.add_argument("--split", default="test", help="split to sample from (default: test)")
    parser.add_argument("--people", type=int, default=16, help="number of people (default: 16)")
    parser.add_argument("--repeats", type=int, default=5, help="timed sweeps of each system (default: 5)")
    parser.add_argument("--out", type=local_path, help="JSON file to write")
    args = parser.parse_args()
    names = [name for name in map(str.strip, args.students.split(",")) if name]
    systems = {str(name): load(name) for name in (args.workdir, *map(arguments.parse_source, names))}
    if len(systems) < 2:
        raise UserError(f"--students {args.students}: give at least one that is not the teacher")
    found = measure(systems, args)
    print(
        f"{len(SCALES)} scales x {args.people} people of split {args.split!r}, "
        f"{jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}\n{table(found)}"
    )
    if args.out:
        write_atomically(args.out, json.dumps(found, indent=2).encode())


if __name__ == "__main__":
    cli.run(main)
