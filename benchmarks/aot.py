"""What XLA's TPU compiler makes of our programs, on a machine without a TPU: `python benchmarks/aot.py`.

Compiles the training steps of configs and their sampling program in bfloat16 for a described topology and prints, for
one chip and one call: FLOPs and bytes accessed as XLA counts them in the optimised program (the body of a loop once:
one sampler step), their ratio, the seconds that the chip's peak and bandwidth allow, the MFU that follows, and memory.
Nothing runs. The compiler comes from PyPI: `pip install libtpu` (0.0.42.1 fits JAX 0.10.2). A program takes minutes
and up to 6 GB; `--largest` compiles several. `--save` writes the optimised program, `--top` lists where its bytes go.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # there is no TPU's metadata server to ask

import cost
import jax
import ml_collections
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from slf_common import cli
from slf_common.config import load_config
from slf_common.errors import UserError
from slf_jax import distributed
from slf_jax.cascade.sizes import STAGES
from slf_jax.training.optimizer import make_optimizer
from slf_jax.training.settings import train_settings
from slf_jax.training.state import init_state
from slf_jax.training.step import make_step

# Dense bfloat16 TFLOP/s, GB/s and GB of memory per chip, from the vendor's data sheet.
CHIPS = {"v5e": (197.0, 819.0, 16.0)}


def make_mesh(topology: str) -> Mesh:
    """The mesh of a topology such as "v5e:2x2", of devices that can be compiled for but not used."""
    if topology.partition(":")[0] not in CHIPS:
        raise UserError(f"--topology {topology}: must be CHIP:SIZE with CHIP one of {', '.join(CHIPS)}")
    try:
        devices = topologies.get_topology_desc(topology, platform="tpu").devices
    except (RuntimeError, jax.errors.JaxRuntimeError, NotImplementedError) as error:
        line = str(error).splitlines()[0][:150]
        raise UserError(f"--topology {topology}: no TPU compiler for it ({line}); pip install libtpu") from None
    return Mesh(np.array(devices), (distributed.AXIS,))


def shapes(mesh: Mesh, tree: object, *parts: str | None) -> object:
    """The shapes of a pytree's arrays, with the axis named "data" in `parts` split over the mesh."""
    sharding = NamedSharding(mesh, PartitionSpec(*parts))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=sharding), tree)


def batch_of(config: ml_collections.ConfigDict, count: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of `count` records."""
    one = cost.make_clips(cost.make_system(config).layout, 1)
    return {name: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype) for name, x in one.items()}


def lower_step(config: ml_collections.ConfigDict, name: str, batch: int, mesh: Mesh) -> jax.stages.Lowered:
    """The training step of a stage for a global batch."""
    system, settings, key = cost.make_system(config), train_settings(config, name), jax.random.key(0)
    optimizer, schedule = make_optimizer(settings)
    state = jax.eval_shape(lambda: init_state(system.stages[name], optimizer, key))
    records = batch_of(config, batch)
    records["batch_index"] = jax.ShapeDtypeStruct((batch,), np.int32)
    records["stop"] = jax.ShapeDtypeStruct((batch,), bool)
    records = {name: jax.ShapeDtypeStruct((1, *x.shape), x.dtype) for name, x in records.items()}
    step = distributed.compile_steps(make_step(system, name, optimizer, schedule, settings), mesh, config.parallel)
    key = jax.eval_shape(lambda: key)
    return step.lower(shapes(mesh, state), shapes(mesh, records, None, distributed.AXIS), shapes(mesh, key))


class Program:
    """One compiled program and what the compiler says about it; all numbers for one chip."""

    def __init__(self, lowered: jax.stages.Lowered) -> None:
        start = time.perf_counter()
        self.compiled = lowered.compile()
        self.seconds = time.perf_counter() - start
        counts, use = self.compiled.cost_analysis(), self.compiled.memory_analysis()
        self.tflop, self.gigabytes = counts["flops"] / 1e12, counts["bytes accessed"] / 1e9
        self.arguments, self.temporaries = use.argument_size_in_bytes / 1e9, use.temp_size_in_bytes / 1e9
