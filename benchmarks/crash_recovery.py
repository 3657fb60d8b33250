"""Kills a training run repeatedly and checks that it ends with the same numbers as an uninterrupted run.

    python benchmarks/crash_recovery.py --config configs/demo.py --kills 50

Each kill comes in a random phase: at start-up, while the data is opened and read, while the step compiles, between
steps, or while a checkpoint is written. The signal is SIGKILL, or SIGTERM, on which a run saves before it exits. After
each kill the run directory must be readable and its newest checkpoints intact. At the end, parameters, EMA, optimiser
state and losses are compared bit for bit. The exit status is 1 if anything differs.
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

PHASES = ("start", "data", "compile", "step", "save")
MAX_DELAY = 4.0  # a kill comes at most this many seconds after its phase has begun


class Training:
    """A training run in a subprocess that writes its output to a file."""

    def __init__(self, command: Sequence[str], workdir: Path, devices: int) -> None:
        flags = os.environ.get("XLA_FLAGS", "") + f" --xla_force_host_platform_device_count={devices}"
        self.workdir, self._log = workdir, workdir.with_suffix(".log")
        self._offset = len(self.output)  # where the output of this process starts
        with self._log.open("a") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "slf_jax.train", *command, f"--config.workdir={workdir}"],
                stdout=file, stderr=subprocess.STDOUT, env=os.environ | {"XLA_FLAGS": flags, "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip

    @property
    def output(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    @property
    def new_output(self) -> str:
        return self.output[self._offset :]

    def has_reached(self, phase: str) -> bool:
        if phase == "save":
            return any(self.workdir.glob("checkpoints/*/*tmp*"))
        markers = {"start": "", "data": "data  ", "compile": "batch  ", "step": "compiled in"}
        return markers[phase] in self.new_output

    def kill_in(self, phase: str, delay: float, how: signal.Signals) -> bool:
        """Kills the process `delay` seconds after the phase begins; returns False if training ends before that."""
        while not self.has_reached(phase):
            if self.process.poll() is not None:
                return False
            time.sleep(0.001)
        try:
            self.process.wait(delay)
            return False
        except subprocess.TimeoutExpired:
            self.process.send_signal(how)
            self.process.wait()
            if "error:" in self.new_output:
                raise UserError(f"training failed:\n{self.output[-2000:]}") from None
            return True


def read_state(workdir: Path) -> dict[str, list]:
    """The newest checkpoint of each stage and all logged losses; raises an error if a checkpoint is damaged."""
    found: dict[str, list] = {}
    for name in STAGES:
        if not any(workdir.glob(f"checkpoints/{name}/[0-9]*")):
            continue
        with Checkpoints(workdir, name) as checkpoints:
            step = checkpoints.latest()
            if step is None:
                continue
            saved = checkpoints._manager.restore(step)
            checkpoints.restore_ema(step, saved["ema"])  # checks the EMA's digest; resuming checks the rest
            found[name] = [step, *jax.tree.leaves((saved["ema"], saved["training"]))]
    lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True) if found else []
    logged = [json.loads(line) for line in lines if line.endswith("\n")]
    found["losses"] = [(line["stage"], line["step"], line["loss"]) for line in logged if "loss" in line]
    return found


def equal(a: dict[str, list], b: dict[str, list]) -> bool:
    return a.keys() == b.keys() and all(
        len(a[key]) == len(b[key]) and all(np.array_equal(x, y) for x, y in zip(a[key], b[key], strict=True))
        for key in a
    )


def finish(command: Sequence[str], workdir: Path, devices: int) -> None:
    training = Training(command, workdir, devices)
    if training.process.wait():
        raise UserError(f"training failed:\n{training.output[-2000:]}")


def draw_kill(rng: random.Random) -> tuple[signal.Signals, str, float]:
    """Draws a signal, a phase and a delay in seconds. Half of the delays are short, as some of the phases are."""
    how, phase = rng.choice((signal.SIGKILL, signal.SIGTERM)), rng.choice(PHASES)
    return how, phase, rng.uniform(0, MAX_DELAY if rng.random() < 0.5 else 0.2)


def drill(command: Sequence[str], out: Path, kills: int, devices: int, seed: int) -> bool:
    """Returns whether every killed run ended with the same numbers as the uninterrupted one."""
    rng, start, killed, passed = random.Random(seed), time.monotonic(), 0, True
    out.mkdir(parents=True, exist_ok=True)
    finish(command, out / "uninterrupted", devices)
    expected, rounds = read_state(out / "uninterrupted"), 0
    print(f"uninterrupted run: {time.monotonic() - start:.0f} s", flush=True)
    while killed < kills:
        rounds += 1
        workdir = out / f"killed{rounds}"
        while killed < kills:
            training = Training(command, workdir, devices)
            how, phase, delay = draw_kill(rng)
            if not training.kill_in(phase, delay, how):
                break
            killed += 1
            steps = {name: found[0] for name, found in read_state(workdir).items() if name in STAGES}
            print(f"{killed:3} {how.name} {delay:.2f} s after {phase}; checkpoints: {steps or 'none'}", flush=True)
        finish(command, workdir, devices)
        identical = equal(expected, read_state(workdir))
        passed &= identical
        print(f"round {rounds}: {'bit-identical' if identical else 'DIFFERENT NUMBERS'}", flush=True)
    print(f"{killed} kills, {rounds} rounds, {time.monotonic() - start:.0f} s: {'passed' if passed else 'FAILED'}")
    return passed


def main() -> None:
    arguments = cli.parser(
        "benchmarks.crash_recovery",
        "Kills a training run at random moments and compares the result with an uninterrupted run.",
        ["python benchmarks/crash_recovery.py --config configs/demo.py --kills 50"],
    )
    arguments.add_argument("--config", required=True)
    arguments.add_argument("--kills", type=int, default=50, help="default: 50")
    arguments.add_argument("--devices", type=int, default=1, help="virtual CPU devices (default: 1)")
    arguments.add_argument("--seed", type=int, default=0, help="of the random kills (default: 0)")
    arguments.add_argument("--out", type=Path, default=Path("runs/drill"), help="new folder (default: runs/drill)")
    args, overrides = cli.parse_overrides(arguments)
    if args.out.exists():
        raise UserError(f"{args.out}: already exists; remove it or give another --out")
    command = ["--config", args.config, *(f"--config.{key}={value}" for key, value in overrides.items())]
    raise SystemExit(0 if drill(command, args.out, args.kills, args.devices, args.seed) else 1)


if __name__ == "__main__":
    cli.run(main)
