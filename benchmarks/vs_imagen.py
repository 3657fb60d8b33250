"""This code beside imagen-pytorch 2.1.0, the library that the original SLF used, on the same machine and layout.

    python -m venv imagen && imagen/bin/pip install imagen-pytorch==2.1.0
    python benchmarks/vs_imagen.py --peer imagen/bin/python           # a training step, a guided evaluation
    python benchmarks/vs_imagen.py --peer imagen/bin/python --face    # a whole face

Both stages have `configs/paper.py`'s layout at width 64: 8 -> 32 in batches of 8, 32 -> 128 in batches of 1, with the
256x768 matrix. A training step is `make_step`'s beside ImagenTrainer's with its defaults; a guided evaluation is one
step of sampling, conditional and null branch, less the sampler's own arithmetic. The library encodes the conditions in
each evaluation, this code once for each person, so that here they are encoded beforehand. Both sides take turns, each
idle while the other works; the first call of each turn is not counted. Ratios are of medians, theirs to ours.

With --face: `configs/base.py` by its own sampler, beside the original's widths 192 and 128, which take 1000 steps in
each stage; theirs is extrapolated from timed evaluations. GFLOP of theirs are of convolutions and matrix products,
those of ours of all arithmetic.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
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

WIDTH, BATCHES = 64, {"base": 8, "upsampler": 1}
SCALE, FACE_SCALE = 3.0, 2.0  # of guidance, in an evaluation and in a whole face
ORIGINAL_WIDTHS = {"base": 192, "upsampler": 128}

Ask = Callable[[str], dict | float]


@contextlib.contextmanager
def serve(python: str, stage: str, width: int, batch: int, dtype: str) -> Iterator[Ask]:
    """One stage of imagen-pytorch in a process of its own; yields what asks it (see `imagen_peer.py`)."""
    server = str(Path(__file__).with_name("imagen_peer.py"))
    command = [python, server, "--stage", stage, "--width", str(width), "--batch", str(batch), "--dtype", dtype]
    with tempfile.TemporaryFile("w+") as errors:
        try:
            process = Popen(command, text=True, stdin=PIPE, stdout=PIPE, stderr=errors)
        except OSError as error:
            raise UserError(f"--peer {python}: {error.strerror}; give the Python of imagen-pytorch") from None

        def ask(what: str) -> dict | float:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(f"{what}\n")
                process.stdin.flush()
            answer = process.stdout.readline()
            if not answer:
                errors.seek(0)
                reason = (errors.read().strip() or "it ended without a word").splitlines()[-1]
                raise UserError(f"--peer {python}: {reason} (it needs: pip install imagen-pytorch==2.1.0)")
            return json.loads(answer)

        try:
            yield ask
        finally:
            process.communicate()  # its input ends, and so does it


def describe(ask: Ask, dtype: str) -> dict[str, str | int]:
    """Prints hardware and versions. Raises `UserError` if only one side found a GPU."""
    theirs, threads, device = ask("about"), len(os.sched_getaffinity(0)), jax.devices()[0]
    if (theirs["device"] == "cpu") != (device.platform == "cpu"):
        raise UserError(
            f"JAX computes on {device.platform}, torch on {theirs['device']}; for the CPU on both sides set "
            "JAX_PLATFORMS=cpu and CUDA_VISIBLE_DEVICES= (empty)"
        )
    about = {"device": device.device_kind, "threads": threads, "torch threads": theirs["threads"], "dtype": dtype}
    about["load"] = round(os.getloadavg()[0], 2)  # of others, if any: much of it and no figure here means anything
    about |= {"jax": jax.__version__, "torch": theirs["torch"], "imagen-pytorch": theirs["imagen"]}
    print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    return about


def our_calls(name: str, dtype: str) -> tuple[dict[str, float], Callable[[], object], Callable[[], object]]:
    """What a stage at the peer's layout costs, its training step and its guided evaluation."""
    config, count, key = paper.get_config(), BATCHES[name], jax.random.key(0)
    config.model.dtype = dtype
    config.model[name].update(width=WIDTH)
    system = cost.make_system(config)
    records = cost.make_clips(system.layout, count)
    stage = system.stages[name]
    train_once = cost.make_training(config, system, name, records)
    params, condition = jax.jit(stage.init)(key), jax.jit(stage.condition)
    matrix, mask = system.features(records)
    cond = condition(params, matrix, mask)
    null = condition(params, jnp.zeros_like(matrix[:1]), jnp.zeros_like(mask[:1]))
    images = jax.random.normal(key, (count, stage.size, stage.size, 3))
    start = LowResCond(images, jnp.ones(count), jnp.zeros(count))

    @jax.jit
    def guided(params: dict, *conds: object) -> jax.Array:
        denoise = stage.denoiser(params, start)
        cond, null = (lambda x, sigma, cond=cond: denoise(x, sigma, cond) for cond in conds)
        return guidance.classifier_free(cond, null, jnp.asarray(SCALE))(images, jnp.ones(count))

    return cost.stage_cost(stage), train_once, lambda: guided(params, cond, null)


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def settled(turn: Callable[[], float]) -> float:
    """The second of two calls: while the other side worked, this one lost its caches and more."""
    turn()
    return turn()


def summary(times: Iterable[float]) -> dict[str, float | list[float]]:
    """Of the times after the first."""
    times = list(times)[1:]
    return {"median": statistics.median(times), "min": min(times), "all": times}


def row(label: str, ours: str = "ours", theirs: str = "imagen-pytorch", ratio: float | None = None) -> None:
    print(f"{label:28}{ours:>18}{theirs:>18}{'ratio' if ratio is None else f'{ratio:.2f}':>9}", flush=True)


def time_layouts(python: str, stages: Iterable[str], rounds: int, dtype: str) -> dict:
    """Training steps and guided evaluations of both sides in turn, stage after stage."""
    result = {}
    for name in stages:
        with serve(python, name, WIDTH, BATCHES[name], dtype) as ask:
            result["about"] = result.get("about") or describe(ask, dtype)
            ours, train_once, evaluate = our_calls(name, dtype)
            sides, times = {"ours": ours, "theirs": ask("count")}, []
            for _ in tqdm(range(rounds + 1), name, leave=False):
                mine, theirs = (lambda call: lambda: seconds(call)), (lambda what: lambda: ask(what))
                turns = (mine(train_once), theirs("train"), mine(evaluate), theirs("evaluate"))
                times.append([settled(turn) for turn in turns])
        each = [summary(column) for column in zip(*times, strict=True)]
        sides["ours"] |= {"train": each[0], "guided": each[2]}
        sides["theirs"] |= {"train": each[1], "guided": each[3]}
        row(f"\n{name}, batch {BATCHES[name]}".ljust(29))
        for label, key in (("M parameters", "parameters"), ("GFLOP an evaluation", "evaluation")):
            my, their = (side[key] for side in sides.values())
            row(label, f"{my:.1f}", f"{their:.1f}", their / my)
        for label, key in (("s a training step", "train"), ("s a guided evaluation", "guided")):
            texts = (f"{side[key]['median']:.3f} ({side[key]['min']:.3f})" for side in sides.values())
            row(label, *texts, sides["theirs"][key]["median"] / sides["ours"][key]["median"])
        result[name] = sides
    print(f"\nSeconds: median (min) of {rounds}; the ratio is of medians.")
    return result


def our_face(rounds: int, dtype: str) -> dict:
    """Seconds and TFLOP of one person's face by `configs/base.py`."""
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
    times = [seconds(lambda: program(*arguments)) for _ in tqdm(range(rounds + 1), "ours", leave=False)]
    costs = {name: cost.stage_cost(stage) for name, stage in system.stages.items()}
    return {**summary(times), "tflop": cost.face_cost(costs, settings), "evaluations": settings.evaluations}


def time_face(python: str, rounds: int, dtype: str) -> dict:
    """A face by our preset beside one by the original's sizes, of which single evaluations are timed."""
    steps, result = cost.ORIGINAL_EVALUATIONS // 2, {}
    theirs = {"median": 0.0, "min": 0.0, "tflop": 0.0}
    for name, width in ORIGINAL_WIDTHS.items():  # one after the other, for memory
        with serve(python, name, width, 1, dtype) as ask:
            result["about"] = result.get("about") or describe(ask, dtype)
            sizes = ask("count")
            each = summary(ask("evaluate") for _ in tqdm(range(rounds + 1), name, leave=False))
        print(
            f"imagen-pytorch's {name}, width {width}: {sizes['parameters']:.0f} M parameters, "
            f"{sizes['evaluation']:.1f} GFLOP an evaluation, {each['median']:.3f} s a guided one (two)",
            flush=True,
        )
        theirs[name] = {**sizes, "guided": each}
        theirs["tflop"] += 2 * steps * sizes["evaluation"] / 1000
        for key in ("median", "min"):
            theirs[key] += steps * each[key]
    ours = our_face(rounds, dtype)
    row("\none face, 8 -> 32 -> 128".ljust(29))
    row("guided evaluations a stage", str(ours["evaluations"]), str(steps), steps / ours["evaluations"])
    row("TFLOP", f"{ours['tflop']:.2f}", f"{theirs['tflop']:.1f}", theirs["tflop"] / ours["tflop"])
    row("seconds", f"{ours['median']:.2f}", f"{theirs['median']:.0f}*", theirs["median"] / ours["median"])
    print(f"\nMedians of {rounds}. *Extrapolated: {steps} times a timed guided evaluation, of each stage.")
    return {**result, "ours": ours, "theirs": theirs}


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    arguments.add_argument("--peer", required=True, metavar="PYTHON", help="of the environment with imagen-pytorch")
    arguments.add_argument("--face", action="store_true", help="a whole face instead, both stages")
    arguments.add_argument("--rounds", type=int, default=5, help="timed calls of each kind (default: 5)")
    arguments.add_argument("--threads", type=int, help="cores that each side may use (default: all)")
    arguments.add_argument("--stages", default=",".join(STAGES), help="default: base,upsampler")
    arguments.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: float32")
    arguments.add_argument("--json", type=Path, metavar="FILE", help="write the figures, with all times, here too")
    args = arguments.parse_args()
    stages, cores = args.stages.split(","), sorted(os.sched_getaffinity(0))
    if not set(stages) <= set(STAGES):
        raise UserError(f"--stages {args.stages}: choose of {', '.join(STAGES)}")
    if args.rounds < 1 or (args.threads is not None and not 1 <= args.threads <= len(cores)):
        raise UserError(f"--rounds is at least 1, --threads lies between 1 and {len(cores)}, the cores there are")
    # Before JAX starts its threads. The other side inherits the cores and the GPU, most of whose memory JAX would take.
    os.sched_setaffinity(0, cores[: args.threads])
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.45")
    rest = (args.rounds, args.dtype)
    result = time_face(args.peer, *rest) if args.face else time_layouts(args.peer, stages, *rest)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main)
