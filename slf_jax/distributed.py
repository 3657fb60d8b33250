"""Devices and processes: the mesh, and a per-device step compiled by `jit` + `shard_map` or by `pmap`."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import multihost

from slf_common import cli, interrupt
from slf_common.errors import UserError
from slf_common.files import check_writable, local_path

AXIS = "data"
MODES = ("shard_map", "pmap")
HEARTBEAT = 15  # seconds without a heartbeat after which a process counts as dead
# On CPU, XLA would otherwise copy each donated array of the state before it is overwritten. No other backend uses it.
COMPILER_OPTIONS = {"xla_cpu_copy_insertion_use_region_analysis": True}
BARRIER_TIMEOUT = 3600  # seconds that processes wait for the slowest one to compile


@contextlib.contextmanager
def processes(config: ml_collections.ConfigDict) -> Iterator[None]:
    """Connects the processes of a run on several hosts if `config.distributed`; disconnects them at the end.

    If this process fails, or notices that another one did, it prints one line and exits at once: a normal exit would
    wait for the others.
    """
    if not config.distributed:
        yield
        return
    _join(config)
    try:
        yield
    except BaseException as error:
        stopped, line = isinstance(error, KeyboardInterrupt), cli.explain(error)
        message = "interrupted" if stopped else f"error: {line}" if line else _explain(error)
        print(f"{message} (process {jax.process_index()} of {jax.process_count()})", file=sys.stderr, flush=True)
        os._exit(interrupt.STATUS if stopped else 2)
    jax.distributed.shutdown()


def _join(config: ml_collections.ConfigDict) -> None:
    explicit = {}
    if config.coordinator:
        explicit = dict(
            coordinator_address=config.coordinator, num_processes=config.num_processes, process_id=config.process_id
        )
    try:
        jax.distributed.initialize(**explicit, heartbeat_timeout_seconds=HEARTBEAT)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            "config.distributed=true: the processes cannot connect to each other "
            f"({str(error).splitlines()[0]}); under SLURM or Open MPI start them with srun or mpirun, elsewhere set "
            "config.coordinator=HOST:PORT, config.num_processes and config.process_id"
        ) from None


def _explain(error: BaseException) -> str:
    """One line if a connection to another process was lost, else the traceback."""
    lost = ("closed by peer", "Connection reset", "heartbeat", "UNAVAILABLE", "DEADLINE_EXCEEDED", "Gloo", "NCCL")
    if any(word in str(error) for word in lost):
        return (
            "error: another process of this run ended or cannot be reached; see its output, then start all of them "
            f"again to resume from the last checkpoint ({str(error).splitlines()[0][:200]})"
        )
    import traceback

    return "".join(traceback.format_exception(error))


def is_main() -> bool:
    """Whether this is the main process, which prints and writes files."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Waits until every process gets here; `what` must be unique within a run.

    A collective fails after waiting half a minute for its peers; this waits up to `BARRIER_TIMEOUT`.
    """
    multihost.sync_global_processes(what, timeout=BARRIER_TIMEOUT, processes=set(range(jax.process_count())))


def make_mesh() -> Mesh:
    """A mesh of all devices along one axis, `"data"`."""
    # Auto, since with make_mesh's default (Explicit) unsharded inputs do not match shard_map's specs.
    return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))


def use_compilation_cache(directory: str) -> None:
    """Caches compiled programs in a folder, so that the same command starts faster the next time; "": no cache.

    Prints a note, and caches nothing, if the folder cannot be written to or the user has no home.
    """
    if not directory:
        return
    try:
        path = local_path(directory)
        check_writable(path, flag="--config.compilation_cache")
    except UserError as error:
        print(f"note: compiled programs are not cached ({error})", file=sys.stderr)
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Copies a pytree, the same in all processes, to every device."""
    sharding = NamedSharding(mesh, PartitionSpec())

    def put(x: Any) -> jax.Array:
        if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(x)))
        return jax.make_array_from_process_local_data(sharding, np.asarray(x))

    return jax.tree.map(put, tree)


def split(mesh: Mesh, batch: Any, axis: int = 0) -> Any:
    """Splits one axis of every array over the devices; `batch` is this process's part of the global batch."""
    sharding = NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def split_steps(mesh: Mesh, mode: str, batches: Any) -> Any:
    """Splits this process's batches of K steps, [K, B, ...], over the devices for the result of `compile_steps`."""
    if mode == "pmap":
        local = len(mesh.local_devices)
        batches = jax.tree.map(lambda x: x.reshape(len(x), local, -1, *x.shape[2:]), batches)
    return split(mesh, batches, axis=1)


def scan(function: Callable, carry: Any, items: Any) -> tuple[Any, Any]:
    """`jax.lax.scan` for training steps, unrolled on CPU.

    There gradients of convolutions take ten times as long inside a loop.
    """
    count = len(jax.tree.leaves(items)[0])
    if count > 1 and jax.default_backend() != "cpu":
        return jax.lax.scan(function, carry, items)
    found = []
    for i in range(count):
        carry, out = function(carry, jax.tree.map(lambda x, i=i: x[i], items))
        found.append(out)
    return carry, jax.tree.map(lambda *each: jax.numpy.stack(each), *found)


def mean(tree: Any) -> Any:
    """Mean over the devices, inside a step; on one device XLA:CPU would copy every array."""
    return tree if jax.lax.axis_size(AXIS) == 1 else jax.lax.pmean(tree, AXIS)


def compile_steps(step: Callable, mesh: Mesh, mode: str) -> jax.stages.Wrapped:
    """Compiles `step(state, batch, key) -> (state, metrics)`, written for one device, over the mesh.

    The result takes the batches of K steps from `split_steps` and runs all K in one dispatch; its metrics are
    [K, ...]. The step sees its device's part of the batch and uses collectives over axis `"data"`; state, key (or any
    pytree in its place) and metrics are the same on every device. The state is donated.

    `mode`: "shard_map" (one program by `jit`) or "pmap"; the numbers are the same. With several processes, pmap's
    result must be compiled ahead of time, `.lower(...).compile()`: called directly, it returns process-local arrays.
    """

    def steps(state: Any, batches: Any, key: jax.Array) -> tuple[Any, Any]:
        return scan(lambda state, batch: step(state, batch, key), state, batches)

    if mode == "shard_map":
        everywhere, parts = PartitionSpec(), PartitionSpec(None, AXIS)
        mapped = jax.shard_map(
            steps,
            mesh=mesh,
            in_specs=(everywhere, parts, everywhere),
            out_specs=everywhere,
            # With check_vma, gradients of replicated parameters would already be summed over devices.
            check_vma=False,
        )
        return jax.jit(mapped, donate_argnums=0, compiler_options=COMPILER_OPTIONS)
    if mode == "pmap":
        # Arrays are global, as for shard_map. Without `devices` and `axis_size`, pmap would expect only this process's
        # part of the mapped axis.
        devices = mesh.devices.ravel().tolist()
        return jax.pmap(
            steps, AXIS, in_axes=(None, 1, None), out_axes=None, donate_argnums=0, devices=devices,
            axis_size=len(devices),
        )  # fmt: skip
    raise ValueError(f"mode {mode!r} must be one of {', '.join(MODES)}")
