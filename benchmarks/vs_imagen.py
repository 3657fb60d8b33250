"""Compares this code with imagen-pytorch 2.1.0, which the original SLF used, on the same machine with the same layout.

    python -m venv imagen && imagen/bin/pip install imagen-pytorch==2.1.0
    export GLIBC_TUNABLES=glibc.malloc.hugetlb=1    # on a CPU: huge pages for both sides (docs/scaling.md)
    python benchmarks/vs_imagen.py --peer imagen/bin/python           # a training step, a guided evaluation
    python benchmarks/vs_imagen.py --peer imagen/bin/python --face    # a whole face

Both stages have the layout of `configs/paper.py` at width 64, conditioned on the 256x768 matrix: 8 -> 32 at batch size
8 and 32 -> 128 at batch size 1. A training step is that of `make_step`, or of ImagenTrainer with its defaults. A guided
evaluation is one sampling step, both the conditional and the unconditional branch, without the sampler's update. The
library encodes the conditions in every evaluation; this code encodes them once per person, so that is not part of its
evaluation. The two sides run in turn, never at the same time, and the first call of each turn is not counted. Ratios
are theirs to ours, of medians.

--face compares the time to draw a whole face: `configs/base.py` with its own sampler against the original's widths of
192 and 128 with 1000 steps per stage, extrapolated from timed evaluations. Their GFLOP count convolutions and matrix
products only; ours count all arithmetic.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from subprocess import PIPE, Popen

import cost
import jax
import jax.numpy as jnp
from tqdm import tqdm

from configs import base, paper
from slf_common import cli
from slf_common.errors import UserError
from slf_jax.cascade.images import make_thumbnail, to_float
from slf_jax.cascade.settings import sample_settings
from slf_jax.cascade.sizes import STAGES
from slf_jax.cascade.stage import LowResCond
from slf_jax.cascade.system import person_noise
from slf_jax.diffusion import guidance

WIDTH = 64
SCALE, FACE_SCALE = 3.0, 2.0  # guidance scales of a single evaluation and of a whole face
ORIGINAL_WIDTHS = {"base": 192, "upsampler": 128}

Send = Callable[[str], dict | float]  # runs a command of `imagen_peer.py`


@contextlib.contextmanager
def serve(python: str, stage: str, width: int, batch: int, dtype: str) -> Iterator[Send]:
    """Runs one stage of imagen-pytorch in a subprocess; yields a function that sends it commands."""
    script = str(Path(__file__).with_name("imagen_peer.py"))
    command = [python, script, "--stage", stage, "--width", str(width), "--batch", str(batch), "--dtype", dtype]
    with tempfile.TemporaryFile("w+") as errors:
        try:
            process = Popen(command, text=True, stdin=PIPE, stdout=PIPE, stderr=errors)
        except OSError as error:
            raise UserError(f"--peer {python}: {error.strerror}; give the Python that has imagen-pytorch") from None

        def send(name: str) -> dict | float:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(f"{name}\n")
                process.stdin.flush()
            answer = process.stdout.readline()
            if not answer:
                errors.seek(0)
                reason = (errors.read().strip() or "it exited without a message").splitlines()[-1]
                raise UserError(f"--peer {python}: {reason} (it needs: pip install imagen-pytorch==2.1.0)")
            return json.loads(answer)

        try:
            yield send
        finally:
            process.communicate()  # closes its input, which makes it exit


def describe(send: Send, dtype: str) -> dict[str, str | int]:
    """Prints hardware and versions. Raises `UserError` if only one side found a GPU."""
    theirs, threads, device = send("about"), len(os.sched_getaffinity(0)), jax.devices()[0]
    if (theirs["device"] == "cpu") != (device.platform == "cpu"):
        raise UserError(
            f"JAX runs on {device.platform}, torch on {theirs['device']}; to run both on the CPU set "
            "JAX_PLATFORMS=cpu and CUDA_VISIBLE_DEVICES= (empty)"
        )
    about = {"device": device.device_kind, "threads": threads, "torch threads": theirs["threads"], "dtype": dtype}
    about["load"] = round(os.getloadavg()[0], 2)  # of other processes: under a high load the timings mean nothing
    about |= {"jax": jax.__version__, "torch": theirs["torch"], "imagen-pytorch": theirs["imagen"]}
    print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    return about


def our_calls(name: str, count: int, dtype: str) -> tuple[dict[str, float], Callable[[], object], Callable[[], object]]:
    """Returns the cost of a stage with the peer's layout, its training step and its guided evaluation."""
    config, key = paper.get_config(), jax.random.key(0)
    config.model.dtype = dtype
    config.model[name].update(width=WIDTH)
    system = cost.make_system(config)
    records = cost.make_clips(system.layout, count)
    stage = system.stages[name]
    train_step = cost.make_training(config, system, name, records)
    params, condition = jax.jit(stage.init)(key), jax.jit(stage.condition)
    matrix, mask = system.features(records)
    cond = condition(params, matrix, mask)
    uncond = condition(params, jnp.zeros_like(matrix[:1]), jnp.zeros_like(mask[:1]))
    images = jax.random.normal(key, (count, stage.size, stage.size, 3))
    lowres = LowResCond(images, jnp.ones(count), jnp.zeros(count))

    @jax.jit
    def guided(params: dict, *conds: object) -> jax.Array:
        denoise = stage.denoiser(params, lowres)
        cond, uncond = (lambda x, sigma, c=c: denoise(x, sigma, c) for c in conds)
        return guidance.classifier_free((uncond, cond), jnp.asarray([SCALE]))(images, jnp.ones(count))

    return cost.stage_cost(stage), train_step, lambda: guided(params, cond, uncond)


def time_call(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def time_turn(turn: Callable[[], float]) -> float:
    """The time of the second of two calls: the first refills the caches after the other side's turn."""
    turn()
    return turn()


def summary(times: Iterable[float]) -> dict[str, float | list[float]]:
    """Statistics of the times in seconds, without the first."""
    times = list(times)[1:]
    return {"median": statistics.median(times), "min": min(times), "all": times}


def print_row(label: str, ours: str = "ours", theirs: str = "imagen-pytorch", ratio: float | None = None) -> None:
    print(f"{label:28}{ours:>18}{theirs:>18}{'ratio' if ratio is None else f'{ratio:.2f}':>9}", flush=True)


def time_layouts(python: str, batches: Mapping[str, int], rounds: int, dtype: str) -> dict:
    """Times training steps and guided evaluations of both sides in turn, one stage after the other."""
    result = {}
    for name, count in batches.items():
        with serve(python, name, WIDTH, count, dtype) as send:
            result["about"] = result.get("about") or describe(send, dtype)
            ours, train_step, evaluate = our_calls(name, count, dtype)
            sides, times = {"ours": ours, "theirs": send("count")}, []
            for _ in tqdm(range(rounds + 1), name, leave=False):
                turns = (
                    partial(time_call, train_step), partial(send, "train"),
                    partial(time_call, evaluate), partial(send, "evaluate"),
                )  # fmt: skip
                times.append([time_turn(turn) for turn in turns])
        columns = [summary(column) for column in zip(*times, strict=True)]
        sides["ours"] |= {"train": columns[0], "guided": columns[2]}
        sides["theirs"] |= {"train": columns[1], "guided": columns[3]}
        print_row(f"\n{name}, batch {count}".ljust(29))
        for label, key in (("M parameters", "parameters"), ("GFLOP per evaluation", "evaluation")):
            mine, theirs = (side[key] for side in sides.values())
            print_row(label, f"{mine:.1f}", f"{theirs:.1f}", theirs / mine)
        for label, key in (("training step (s)", "train"), ("guided evaluation (s)", "guided")):
            texts = (f"{side[key]['median']:.3f} ({side[key]['min']:.3f})" for side in sides.values())
            print_row(label, *texts, sides["theirs"][key]["median"] / sides["ours"][key]["median"])
        result[name] = sides
    print(f"\nSeconds are the median (minimum) of {rounds} calls; ratios are of medians.")
    return result


def our_face(rounds: int, dtype: str) -> dict:
    """Seconds and TFLOP to draw one face with `configs/base.py`."""
    config = base.get_config()
    config.model.dtype = dtype
    system = cost.make_system(config)
    records = cost.make_clips(system.layout, 1)
    settings = sample_settings(config)
    params = {name: jax.jit(stage.init)(jax.random.key(0)) for name, stage in system.stages.items()}
    thumbnail = make_thumbnail(to_float(records["face"]))
    scales = jnp.full((1, len(STAGES)), FACE_SCALE)
    arguments = (params, records, thumbnail, jnp.ones(1), person_noise(0, jnp.arange(1)), scales)
    program = jax.jit(lambda *arguments: system.sample(*arguments, settings))
    times = [time_call(lambda: program(*arguments)) for _ in tqdm(range(rounds + 1), "ours", leave=False)]
    costs = {name: cost.stage_cost(stage) for name, stage in system.stages.items()}
    return {**summary(times), "tflop": cost.face_cost(costs, settings), "evaluations": settings.evaluations["base"]}


def time_face(python: str, rounds: int, dtype: str) -> dict:
    """Compares a face by our preset with one at the original's sizes, extrapolated from single evaluations."""
    steps, result = cost.ORIGINAL_EVALUATIONS // 2, {}
    theirs = {"median": 0.0, "min": 0.0, "tflop": 0.0}
    for name, width in ORIGINAL_WIDTHS.items():  # one at a time, to save memory
        with serve(python, name, width, 1, dtype) as send:
            result["about"] = result.get("about") or describe(send, dtype)
            sizes = send("count")
            guided = summary(send("evaluate") for _ in tqdm(range(rounds + 1), name, leave=False))
        print(
            f"imagen-pytorch's {name}, width {width}: {sizes['parameters']:.0f} M parameters, "
            f"{sizes['evaluation']:.1f} GFLOP per evaluation, {guided['median']:.3f} s per guided evaluation",
            flush=True,
        )
        theirs[name] = {**sizes, "guided": guided}
        theirs["tflop"] += 2 * steps * sizes["evaluation"] / 1000
        for key in ("median", "min"):
            theirs[key] += steps * guided[key]
    ours = our_face(rounds, dtype)
    print_row("\none face, 8 -> 32 -> 128".ljust(29))
    print_row("guided evaluations/stage", str(ours["evaluations"]), str(steps), steps / ours["evaluations"])
    print_row("TFLOP", f"{ours['tflop']:.2f}", f"{theirs['tflop']:.1f}", theirs["tflop"] / ours["tflop"])
    print_row("seconds", f"{ours['median']:.2f}", f"{theirs['median']:.0f}*", theirs["median"] / ours["median"])
    print(f"\nMedians of {rounds} calls. *Extrapolated: {steps} times the time of a guided evaluation, for each stage.")
    return {**result, "ours": ours, "theirs": theirs}


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    arguments.add_argument(
        "--peer", required=True, metavar="PYTHON", help="Python of an environment with imagen-pytorch"
    )
    arguments.add_argument("--face", action="store_true", help="time a whole face instead (both stages)")
    arguments.add_argument("--rounds", type=int, default=5, help="timed calls of each kind (default: 5)")
    arguments.add_argument("--threads", type=int, help="CPU cores for each side (default: all)")
    arguments.add_argument(
        "--stages", default=",".join(STAGES), help="comma-separated stages (default: base,upsampler)"
    )
    arguments.add_argument(
        "--batch", default="8,1", metavar="BASE,UPSAMPLER", help="batch sizes (default: 8,1; a GPU needs far more)"
    )
    arguments.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: float32")
    arguments.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the figures and all times to this file"
    )
    args = arguments.parse_args()
    stages, cores = args.stages.split(","), sorted(os.sched_getaffinity(0))
    if not set(stages) <= set(STAGES):
        raise UserError(f"--stages {args.stages}: must be among {', '.join(STAGES)}")
    try:
        sizes = dict(zip(STAGES, map(int, args.batch.split(",")), strict=True))
    except ValueError:
        raise UserError(f"--batch {args.batch}: must be two numbers, as in --batch 8,1") from None
    batches = {name: sizes[name] for name in stages}
    if args.rounds < 1 or (args.threads is not None and not 1 <= args.threads <= len(cores)):
        raise UserError(f"--rounds must be at least 1 and --threads between 1 and {len(cores)}, the number of cores")
    # Must be set before JAX starts its threads. The peer inherits the cores and the GPU; leave it half of the memory.
    os.sched_setaffinity(0, cores[: args.threads])
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.45")
    rest = (args.rounds, args.dtype)
    result = time_face(args.peer, *rest) if args.face else time_layouts(args.peer, batches, *rest)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main)
