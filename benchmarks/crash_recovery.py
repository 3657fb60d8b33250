"""A fault drill: a training killed again and again ends with the numbers of one that was left alone.

    python benchmarks/crash_recovery.py --config configs/demo.py --kills 50

Each kill comes at a random moment of a random kind: at the start, while data is opened and read, while the step
compiles, between steps, while a checkpoint is being written; by SIGKILL, or by SIGTERM, which a run answers by saving.
After each the run directory must be readable and its newest checkpoints whole. At the end parameters, EMA, optimiser
and losses are compared bit by bit. Exit status 1 if anything differs.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from slf_common import cli
from slf_common.errors import UserError
from slf_jax.cascade.sizes import STAGES
from slf_jax.training.checkpoints import Checkpoints

MOMENTS = ("start", "data", "compile", "step", "save")
LATEST = 4.0  # seconds after such a moment has come at which the kill may fall


class Training:
    """A training in a process of its own, its output in a file."""

    def __init__(self, command: Sequence[str], workdir: Path, devices: int) -> None:
        flags = os.environ.get("XLA_FLAGS", "") + f" --xla_force_host_platform_device_count={devices}"
        self.workdir, self._log = workdir, workdir.with_suffix(".log")
        self._before = len(self.output)
        with self._log.open("a") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "slf_jax.train", *command, f"--config.workdir={workdir}"],
                stdout=file, stderr=subprocess.STDOUT, env=os.environ | {"XLA_FLAGS": flags, "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip

    @property
    def output(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def has_come(self, moment: str) -> bool:
        told = self.output[self._before :]
        saving = any(self.workdir.glob("checkpoints/*/*tmp*"))
        signs = {"start": True, "data": "data  " in told, "compile": "batch  " in told, "step": "compiled in" in told}
        return {**signs, "save": saving}[moment]

    def kill_at(self, moment: str, delay: float, how: signal.Signals) -> bool:
        """Waits for the moment and kills; False if the training ended before."""
        while not self.has_come(moment):
            if self.process.poll() is not None:
                return False
            time.sleep(0.001)
        try:
            self.process.wait(delay)
            return False
        except subprocess.TimeoutExpired:
            self.process.send_signal(how)
            self.process.wait()
            if "error:" in self.output[self._before :]:
                raise UserError(f"the training itself failed:\n{self.output[-2000:]}") from None
            return True


def numbers(workdir: Path) -> dict[str, list]:
    """Everything in the newest checkpoint of each stage, and the losses that were told; raises if it is damaged."""
    found: dict[str, list] = {}
    for name in STAGES:
        if not any(workdir.glob(f"checkpoints/{name}/[0-9]*")):
            continue
        with Checkpoints(workdir, name) as checkpoints:
            step = checkpoints.latest()
            if step is None:
                continue
            whole = checkpoints._manager.restore(step)
            checkpoints.restore_ema(step, whole["ema"])  # checks its digest; the rest is checked by who resumes
            found[name] = [step, *jax.tree.leaves((whole["ema"], whole["training"]))]
    lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True) if found else []
    told = [json.loads(line) for line in lines if line.endswith("\n")]
    found["losses"] = [(line["stage"], line["step"], line["loss"]) for line in told if "loss" in line]
    return found


def same(a: dict[str, list], b: dict[str, list]) -> bool:
    return a.keys() == b.keys() and all(
        len(a[key]) == len(b[key]) and all(np.array_equal(x, y) for x, y in zip(a[key], b[key], strict=True))
        for key in a
    )


def finish(command: Sequence[str], workdir: Path, devices: int) -> None:
    training = Training(command, workdir, devices)
    if training.process.wait():
        raise UserError(f"the training itself failed:\n{training.output[-2000:]}")


def drill(command: Sequence[str], out: Path, kills: int, devices: int, seed: int) -> bool:
    """Whether all runs that were killed ended as the one that was not."""
    rng, start, killed, fine = random.Random(seed), time.monotonic(), 0, True
    out.mkdir(parents=True, exist_ok=True)
    finish(command, out / "whole", devices)
    expected, rounds = numbers(out / "whole"), 0
    print(f"left alone: {time.monotonic() - start:.0f} s", flush=True)
    while killed < kills:
        rounds += 1
        workdir = out / f"killed{rounds}"
        while killed < kills:
            training = Training(command, workdir, devices)
            how = rng.choice((signal.SIGKILL, signal.SIGTERM))
            moment, delay = rng.choice(MOMENTS), rng.uniform(0, LATEST) if rng.random() < 0.5 else rng.uniform(0, 0.2)
            if not training.kill_at(moment, delay, how):
                break
            killed += 1
            steps = {name: found[0] for name, found in numbers(workdir).items() if name in STAGES}
            print(f"{killed:3} {how.name} {delay:.2f} s after {moment}; saved: {steps or 'nothing'}", flush=True)
        finish(command, workdir, devices)
        equal = same(expected, numbers(workdir))
        fine &= equal
        print(f"round {rounds}: {'the same numbers, bit by bit' if equal else 'OTHER NUMBERS'}", flush=True)
    print(f"{killed} kills, {rounds} rounds, {time.monotonic() - start:.0f} s: {'passed' if fine else 'FAILED'}")
    return fine


def main() -> None:
    arguments = cli.parser(
        "benchmarks.crash_recovery", "Kills a training at random moments and compares.",
        ["python benchmarks/crash_recovery.py --config configs/demo.py --kills 50"],
    )  # fmt: skip
    arguments.add_argument("--config", required=True)
    arguments.add_argument("--kills", type=int, default=50)
    arguments.add_argument("--devices", type=int, default=1, help="virtual CPU devices (default: 1)")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--out", type=Path, default=Path("runs/drill"), help="must not hold an earlier drill")
    args, overrides = cli.parse_overrides(arguments)
    if args.out.exists():
        raise UserError(f"{args.out}: is there already; remove it or give another --out")
    command = ["--config", args.config, *(f"--config.{key}={value}" for key, value in overrides.items())]
    raise SystemExit(0 if drill(command, args.out, args.kills, args.devices, args.seed) else 1)


if __name__ == "__main__":
    cli.run(main)
