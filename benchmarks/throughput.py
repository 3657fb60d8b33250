"""Training throughput of this accelerator: `python benchmarks/throughput.py configs/base.py configs/paper.py`.

Prints, for each config and stage, the images/s and TFLOP/s of the training step, its MFU (XLA's FLOP count of the
unoptimised program, divided by the time and by the chip's bfloat16 peak), and the memory of the compiled program.
Records are random, so no dataset is needed, and stay on the device: only the step is measured. With
`--attention xla,cudnn` and `--batch 128,256` (for the base stage; the upsampler uses half), all combinations are
compiled in parallel, then timed one after the other.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cost
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from slf_common import cli
from slf_common.config import load_config
from slf_jax import distributed
from slf_jax.cascade.sizes import STAGES
from slf_jax.training.optimizer import make_optimizer
from slf_jax.training.settings import train_settings
from slf_jax.training.state import TrainState, init_state
from slf_jax.training.step import make_step

# Dense bfloat16 TFLOP/s per chip from the vendors' data sheets, by a part of JAX's device kind.
PEAKS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "v5 lite": 197.0, "v6 lite": 918.0}
WARM_UP, STEPS, ROUNDS = 3, 10, 5


def peak() -> float | None:
    """Peak TFLOP/s of all devices together; None for chips that are not in `PEAKS`."""
    kind = jax.devices()[0].device_kind
    return next((value * jax.device_count() for name, value in PEAKS.items() if name in kind), None)


def place(mesh: jax.sharding.Mesh, tree: Any, *parts: str | None) -> Any:
    """Shapes like those in a pytree, replicated, or with axes split over the mesh."""
    sharding = NamedSharding(mesh, PartitionSpec(*parts))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def lower_step(
    config: ml_collections.ConfigDict, name: str, batch: dict, mesh: jax.sharding.Mesh
) -> tuple[jax.stages.Lowered, Callable[[], TrainState]]:
    """The training step of a stage for arrays like those of `batch`, and what makes its initial state."""
    system, settings, key = cost.make_system(config), train_settings(config, name), jax.random.key(0)
    optimizer, schedule = make_optimizer(settings)
    init = lambda: init_state(system.stages[name], optimizer, key)  # noqa: E731
    step = make_step(system, name, optimizer, schedule, settings)
    arguments = place(mesh, jax.eval_shape(init)), place(mesh, batch, None, distributed.AXIS), place(mesh, key)
    return distributed.compile_steps(step, mesh, "shard_map").lower(*arguments), init


class Case:
    """The training step of one stage with one batch size and attention kernel."""

    def __init__(self, path: str, name: str, batch: int, attention: str) -> None:
        self.label = f"{path.removeprefix('configs/'):10}{name:11}{batch:6} {attention:6}"
        self.batch_size, self._mesh = batch, distributed.make_mesh()
        config = load_config(path)
        records = cost.make_clips(cost.make_system(config).layout, batch)
        records |= {"batch_index": np.arange(batch, dtype=np.int32), "stop": np.zeros(batch, bool)}
        records = jax.tree.map(lambda x: x[None], records)
        self._batch = distributed.split_steps(self._mesh, config.parallel, records)
        # Only the CPU's client counts the FLOPs of a program that is not compiled.
        cpu = jax.make_mesh((1,), (distributed.AXIS,), (AxisType.Auto,), devices=jax.devices("cpu")[:1])
        counted, _ = lower_step(config, name, records, cpu)
        self.tflop = counted.cost_analysis()["flops"] / 1e12
        config.model[name].attention = attention
        self._lowered, self._init = lower_step(config, name, self._batch, self._mesh)

    def compile(self) -> None:
        start = time.perf_counter()
        self._compiled = self._lowered.compile()
        self.compile_seconds = time.perf_counter() - start
        use = self._compiled.memory_analysis()
        self.gigabytes = (use.argument_size_in_bytes + use.temp_size_in_bytes) / 1e9 if use else float("nan")

    def seconds(self) -> float:
        """Median seconds per step."""
        state, key = distributed.replicate(self._mesh, (self._init(), jax.random.key(0)))
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
    """TB/s of copying 2 GB on the device, counting bytes read and written."""
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
    parser.add_argument("--batch", default="256", help="comma-separated batch sizes of the base stage (default: 256)")
    parser.add_argument("--attention", default="xla", help="comma-separated attention kernels (default: xla)")
    parser.add_argument("--stages", default=",".join(STAGES), help="comma-separated stages (default: all)")
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
