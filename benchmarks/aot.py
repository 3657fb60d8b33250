"""What XLA's TPU compiler makes of our programs, on a machine without a TPU: `python benchmarks/aot.py`.

Compiles the training steps of configs and their sampling program in bfloat16 for a topology, and prints for one chip
and one call (of a loop, one pass: one sampler step of each stage):

- FLOPs, and the bytes that XLA's cost analysis counts, most of which never leave the chip;
- bytes to and from the chip's memory (HBM): operands and results of the program's instructions that are not in vector
  memory; the FLOPs for each; the time that the chip's peak and its bandwidth allow, and the MFU that follows;
- memory of arguments and temporaries, and how long compiling took.

Nothing runs. The compiler refuses a program that does not fit into the chip's memory, 15.75 GiB on a v5e. It is on
PyPI: `pip install libtpu` (0.0.42.1 for JAX 0.10.2). A program takes minutes and several GB. `--largest` looks for the
largest batch that fits, which compiles several programs; `--top` lists where the HBM bytes of each program go.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import math
import os
import re
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
# There is no TPU to ask about, nor one to lock.
os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
os.environ["TPU_ACCELERATOR_TYPE"] = "v5litepod-4"  # else libtpu warns

import cost
import jax
import ml_collections
import numpy as np
import throughput
from jax.experimental import topologies
from jax.sharding import Mesh

from slf_common import cli
from slf_common.config import load_config
from slf_common.errors import UserError
from slf_jax import distributed
from slf_jax.cascade.settings import sample_settings
from slf_jax.cascade.sizes import SIZES, STAGES
from slf_jax.cascade.system import System, person_noise

# Dense bfloat16 TFLOP/s, and GB/s of HBM per chip, from the vendor's data sheet.
CHIPS = {"v5e": (197.0, 819.0)}
PROGRAMS = (*STAGES, "sampler")
BITS = {"pred": 8, "s8": 8, "u8": 8, "bf16": 16, "f16": 16, "s16": 16, "u16": 16, "f32": 32, "s32": 32, "u32": 32}
NO_TRAFFIC = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?(%\S+) = (.*?) ([a-z][\w-]*)\((.*)$")
HEADER = (
    f"{'program':30}{'batch':>7}{'TFLOP':>8}{'GB, XLA':>10}{'GB, HBM':>8}{'FLOP/B':>8}{'ms, FLOPs':>11}"
    f"{'ms, bytes':>11}{'MFU <=':>8}{'GB, args':>10}{'GB, temp':>10}{'compiled in s':>15}"
)


def make_mesh(topology: str) -> Mesh:
    """The mesh of a topology such as "v5e:2x2": devices that can be compiled for, but not used."""
    if topology.partition(":")[0] not in CHIPS:
        raise UserError(f"--topology {topology}: must be CHIP:SIZE, with CHIP one of {', '.join(CHIPS)}")
    try:
        devices = topologies.get_topology_desc(topology, platform="tpu").devices
    except (RuntimeError, ValueError, NotImplementedError) as error:
        line = str(error).splitlines()[0][:150]
        raise UserError(f"--topology {topology}: {line}; it takes libtpu and a size such as 2x2 or 4x4") from None
    return Mesh(np.array(devices), (distributed.AXIS,))


def record_shapes(system: System, count: int) -> dict[str, jax.ShapeDtypeStruct]:
    one = cost.make_clips(system.layout, 1)
    return {name: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype) for name, x in one.items()}


def lower_step(config: ml_collections.ConfigDict, name: str, batch: int, mesh: Mesh) -> jax.stages.Lowered:
    """The training step of a stage for a global batch."""
    shape = jax.ShapeDtypeStruct
    records = record_shapes(cost.make_system(config), batch)
    records |= {"batch_index": shape((batch,), np.int32), "stop": shape((batch,), bool)}
    records = jax.tree.map(lambda x: shape((1, *x.shape), x.dtype), records)
    return throughput.lower_step(config, name, records, mesh)[0]


def lower_sampler(config: ml_collections.ConfigDict, batch: int, mesh: Mesh) -> jax.stages.Lowered:
    """Sampling of `batch` people at one scale."""
    system, settings = cost.make_system(config), sample_settings(config)

    def sample(params: Any, clips: Any, low: jax.Array, people: jax.Array, scales: jax.Array) -> jax.Array:
        known = jax.numpy.ones(batch)
        return system.sample(params, clips, low, known, person_noise(0, people), scales, settings)

    shape, side = jax.ShapeDtypeStruct, SIZES["base"][0]
    params = {name: jax.eval_shape(stage.init, jax.random.key(0)) for name, stage in system.stages.items()}
    rows = record_shapes(system, batch), shape((batch, side, side, 3), np.float32), shape((batch,), np.int32)
    scales = shape((1, len(STAGES)), np.float32)
    return jax.jit(sample).lower(
        throughput.place(mesh, params), *throughput.place(mesh, rows, distributed.AXIS), throughput.place(mesh, scales)
    )


class Program:
    """A compiled program; all numbers are of one chip and one call."""

    def __init__(self, lowered: jax.stages.Lowered, chip: str) -> None:
        """Raises `jax.errors.JaxRuntimeError` if it does not fit into memory."""
        start = time.perf_counter()
        self.compiled = lowered.compile()
        self.seconds = time.perf_counter() - start
        counts, use = self.compiled.cost_analysis(), self.compiled.memory_analysis()
        peak, bandwidth = CHIPS[chip]
        self.tflop, self.accessed = counts["flops"] / 1e12, counts["bytes accessed"] / 1e9
        self.traffic = sum(size for *_, size in instructions(self.compiled.as_text())) / 1e9
        self.arguments, self.temporaries = use.argument_size_in_bytes / 1e9, use.temp_size_in_bytes / 1e9
        self.limits = self.tflop / peak, self.traffic / bandwidth  # seconds

    def row(self) -> str:
        flops, traffic = self.limits
        return (
            f"{self.tflop:8.3f}{self.accessed:10.2f}{self.traffic:8.2f}{1e3 * self.tflop / self.traffic:8.0f}"
            f"{1e3 * flops:11.1f}{1e3 * traffic:11.1f}{100 * flops / max(flops, traffic):6.0f} %{self.arguments:10.2f}"
            f"{self.temporaries:10.2f}{self.seconds:15.0f}"
        )


def instructions(text: str) -> list[tuple[str, str, int]]:
    """Result, module and bytes read from and written to HBM of every instruction of a compiled program.

    An upper bound: operands count in full, also where an instruction reads only a slice of them.
    """
    inner = set(re.findall(r"(?:calls|to_apply)=(%[\w.-]+)", text))  # of fusions and reductions
    found, arrays, skip = [], {}, True
    for line in text.splitlines():
        if line.endswith("{"):
            skip, arrays = line.removeprefix("ENTRY ").split()[0] in inner, {}
        match = None if skip else INSTRUCTION.match(line)
        if not match:
            continue
        name, result, kind, rest = match.groups()
        arrays[name] = sum(array_bytes(result))
        if kind in NO_TRAFFIC or kind.endswith("-done"):
            continue
        names = re.findall(r"%[\w.-]+", rest.partition("), ")[0])
        size = arrays[name] + sum(map(arrays.get, names))
        if kind == "copy-start":  # a tuple: the copy, its source, and a counter
            size = array_bytes(result)[0] + sum(map(arrays.get, names))
        elif kind == "slice-start":  # a tuple: the source, its slice, and a counter
            size = array_bytes(result.replace("S(1)", ""))[1]
        module = re.search(r'op_name="([^"]*)"', line)
        found.append((f"{kind} {result.partition('{')[0]}", module[1] if module else "", size))
    return found


def array_bytes(shape: str) -> list[int]:
    """Bytes of each of the arrays of a shape; 0 for those in vector memory, which is S(1)."""
    return [
        0 if "S(1)" in layout else math.prod(int(side) for side in sides.split(",") if side) * BITS.get(dtype, 0) // 8
        for dtype, sides, layout in re.findall(r"(\w+)\[([\d,]*)\](\{[^}]*\})?", shape)
    ]


def print_top(program: Program, count: int) -> None:
    """The kinds of results and the modules with the most bytes."""
    kinds: collections.Counter[str] = collections.Counter()
    modules: collections.Counter[str] = collections.Counter()
    for kind, module, size in instructions(program.compiled.as_text()):
        kinds[kind] += size
        modules["/".join(re.sub(r"\d+(_\d+)?", "*", part) for part in module.split("/")[-3:])] += size
    for title, sizes in (("result", kinds), ("module", modules)):
        print(f"{sum(sizes.values()) / 1e9:10.2f} GB by {title}")
        for name, size in sizes.most_common(count):
            print(f"{size / 1e9:10.2f} {name}")


def find_largest(batch: int, chips: int, compiled: Callable[[int], Program | None]) -> int:
    """The largest batch that fits, of `batch` times powers of two and divisible by `chips`; 0: none does."""
    if compiled(batch):
        while compiled(2 * batch):
            batch *= 2
        return batch
    while batch % (2 * chips) == 0:
        batch //= 2
        if compiled(batch):
            return batch
    return 0


class Case:
    """A program of a config, which can be compiled for any batch."""

    def __init__(self, path: str, name: str, mesh: Mesh, chip: str, changes: Mapping[str, str]) -> None:
        self._label, self._name = f"{path.removeprefix('configs/')} {name}", name
        self._mesh, self._chip = mesh, chip
        self._config = load_config(path, changes)
        self._config.model.dtype = "bfloat16"
        self.batch = 16 * mesh.size if name == "sampler" else self._config.train[name].batch_size

    def compile(self, batch: int) -> Program | None:
        """Compiles and prints the program; None if the compiler finds that it does not fit."""
        if self._name == "sampler":
            lowered = lower_sampler(self._config, batch, self._mesh)
        else:
            lowered = lower_step(self._config, self._name, batch, self._mesh)
        try:
            program = Program(lowered, self._chip)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            print(f"{self._label:30}{batch:7} does not fit: {str(error).splitlines()[0][:120]}", flush=True)
            return None
        print(f"{self._label:30}{batch:7}{program.row()}", flush=True)
        return program


def print_programs(topology: str, args: argparse.Namespace) -> None:
    mesh, chip = make_mesh(topology), topology.partition(":")[0]
    print(f"{topology}: {mesh.size} chips\n{HEADER}", flush=True)
    for path, name in itertools.product(args.configs, args.programs):
        case = Case(path, name, mesh, chip, dict(args.set))
        batch = args.batch or case.batch
        if args.largest:
            largest = find_largest(batch, mesh.size, case.compile)
            print(f"largest batch that fits: {largest}, {largest // mesh.size} per chip", flush=True)
        elif (program := case.compile(batch)) and args.top:
            print_top(program, args.top)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("configs", nargs="*", default=["configs/base.py", "configs/paper.py"])
    parser.add_argument("--topology", nargs="+", default=["v5e:2x2"], help="default: v5e:2x2")
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=PROGRAMS, help="default: all")
    parser.add_argument(
        "--batch", type=int, default=0, help="over all chips (default: the config's; sampler: 16 a chip)"
    )
    parser.add_argument("--largest", action="store_true", help="double or halve the batch, to the largest that fits")
    parser.add_argument("--top", type=int, default=0, help="results and modules with the most bytes to list")
    parser.add_argument(
        "--set", nargs="+", default=[], type=lambda text: tuple(text.split("=", 1)), metavar="KEY=VALUE",
        help="changes of the configs, such as model.base.patch=2",
    )  # fmt: skip
    args = parser.parse_args()
    print(f"compiled, not run; jax {jax.__version__}, libtpu {version('libtpu')}")
    for topology in args.topology:
        print_programs(topology, args)


if __name__ == "__main__":
    cli.run(main)
