"""Training throughput of this accelerator: `python benchmarks/throughput.py configs/base.py configs/paper.py`.

For each config and stage: images/s of the training step, TFLOP/s, MFU (XLA's FLOP count of the program before
optimisation, divided by time and by the chip's peak in bfloat16), and the memory of the compiled program. Records are
made up, so that no dataset is needed, and stay on the device: this measures the step alone. With
`--attention xla,cudnn` and `--batch 128,256` (of the base stage; the upsampler takes half), all combinations are
compiled in parallel, then timed one after the other.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import cost
import jax
import jax.numpy as jnp
import numpy as np

from slf_common import cli
from slf_common.config import load_config
from slf_jax import distributed
from slf_jax.cascade.sizes import STAGES
from slf_jax.training.optimizer import make_optimizer
from slf_jax.training.state import init_state
from slf_jax.training.step import make_step

# Dense bfloat16 TFLOP/s per chip, from the vendors' data sheets; the part of JAX's device kind that names the chip.
PEAKS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "v5 lite": 197.0, "v6 lite": 918.0}
WARM_UP, STEPS, ROUNDS = 3, 10, 5


def peak() -> float | None:
    """The TFLOP/s of all devices together, None for chips that `PEAKS` does not know."""
    kind = jax.devices()[0].device_kind
    return next((value * jax.device_count() for name, value in PEAKS.items() if name in kind), None)


class Case:
    """The training step of one stage with one batch size and attention kernel."""

    def __init__(self, path: str, name: str, batch: int, attention: str) -> None:
        self.label = f"{path.removeprefix('configs/'):10}{name:11}{batch:6} {attention:6}"
        config = load_config(path)
        config.model[name].attention = attention
        system, mesh = cost.make_system(config), distributed.make_mesh()
        optimizer, schedule = make_optimizer(config.train, name)
        records = cost.make_clips(system.layout, batch)
        records |= {"batch_index": np.arange(batch, dtype=np.int32), "stop": np.zeros(batch, bool)}
        self.batch_size, self._mesh, self._stage, self._optimizer = batch, mesh, system.stages[name], optimizer
        self._batch = distributed.split_steps(mesh, config.parallel, jax.tree.map(lambda x: x[None], records))
        step = make_step(system, name, optimizer, schedule, config.train)
        key = jax.random.key(0)
        like = jax.eval_shape(lambda: init_state(system.stages[name], optimizer, key))
        self._lowered = distributed.compile_steps(step, mesh, config.parallel).lower(like, self._batch, key)
        self.tflop = self._lowered.cost_analysis()["flops"] / 1e12

    def compile(self) -> None:
        start = time.perf_counter()
        self._compiled = self._lowered.compile()
        self.compile_seconds = time.perf_counter() - start
        use = self._compiled.memory_analysis()
        self.gigabytes = (use.argument_size_in_bytes + use.temp_size_in_bytes) / 1e9 if use else float("nan")

    def seconds(self) -> float:
        """Median seconds of a step."""
        key = jax.random.key(0)
        state, key = distributed.replicate(self._mesh, (init_state(self._stage, self._optimizer, key), key))
        times = []
        for round_number in range(ROUNDS + 1):
            start, steps = time.perf_counter(), STEPS if round_number else WARM_UP
            for _ in range(steps):
                state, metrics = self._compiled(state, self._batch, key)
            jax.block_until_ready(metrics)
            times.append((time.perf_counter() - start) / steps)
        return statistics.median(times[1:])

    def row(self) -> str:
        seconds = self.seconds()
        rate, limit = self.tflop / seconds, peak()
        mfu = f"{100 * rate / limit:.1f}" if limit else "-"
        return (
            f"{self.label}{1e3 * seconds:9.1f}{self.batch_size / seconds:10.0f}{rate:9.1f}{mfu:>7}"
            f"{self.gigabytes:6.1f}{self.compile_seconds:15.0f}"
        )


def bandwidth() -> float:
    """TB/s of copying 2 GB on the device, bytes read and written."""
    x = jnp.ones(2**29, jnp.float32)
    return 2 * x.nbytes / _median(jax.jit(lambda x: x + 1), x) / 1e12


def matmul() -> float:
    """TFLOP/s of a bfloat16 product of 8192 x 8192 matrices."""
    x = jax.random.normal(jax.random.key(0), (8192, 8192), jnp.bfloat16)
    return 2 * 8192**3 / _median(jax.jit(lambda x: x @ x), x) / 1e12


def _median(call: Callable, argument: jax.Array) -> float:
    times = []
    for _ in range(12):
        start = time.perf_counter()
        jax.block_until_ready(call(argument))
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", default=["configs/base.py", "configs/paper.py"])
    parser.add_argument("--batch", default="256", help="batch sizes of the base stage (default: 256)")
    parser.add_argument("--attention", default="xla", help="attention kernels (default: xla)")
    parser.add_argument("--stages", default=",".join(STAGES))
    args = parser.parse_args()
    sizes, kernels = [int(size) for size in args.batch.split(",")], args.attention.split(",")
    print(f"{jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}", flush=True)
    if peak():
        print(f"measured: {bandwidth():.2f} TB/s copying, {matmul():.0f} TFLOP/s bfloat16 8192^3", flush=True)
    combinations = itertools.product(args.configs, args.stages.split(","), sizes, kernels)
    cases = [Case(path, name, size // (1 + (name != "base")), kernel) for path, name, size, kernel in combinations]
    print(f"{'config':10}{'stage':11}{'batch':>6} {'kernel':6}{'ms/step':>9}{'images/s':>10}{'TFLOP/s':>9}{'MFU %':>7}"
          f"{'GB':>6}{'compiled in s':>15}", flush=True)  # fmt: skip
    with ThreadPoolExecutor(4) as threads:
        compiling = [threads.submit(case.compile) for case in cases]
        for case, compiled in zip(cases, compiling, strict=True):
            try:
                compiled.result()
                print(case.row(), flush=True)
            except jax.errors.JaxRuntimeError as error:  # out of memory, or no such kernel for these sizes
                print(f"{case.label} {str(error).splitlines()[0][:100]}", flush=True)


if __name__ == "__main__":
    cli.run(main)
