"""Devices: the mesh, and one per-device step compiled by `jit`+`shard_map` or by `pmap`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tfrecords.cli import UserError

AXIS = "data"


def make_mesh() -> Mesh:
    """All devices along one axis, `"data"`."""
    # Auto: with make_mesh's default (Explicit), unsharded inputs do not match shard_map's specs.
    return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))


def use_compilation_cache(directory: str) -> None:
    """Keeps compiled programs on disk, so that the same command starts faster the next time; "" turns it off."""
    if not directory:
        return
    jax.config.update("jax_compilation_cache_dir", str(Path(directory).expanduser()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Puts a pytree on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def split(mesh: Mesh, mode: str, batch: Any) -> Any:
    """Splits the leading axis of every array over the devices, as `compile_step`'s result takes it.

    Each process brings its own part of the global batch.
    """
    if mode == "pmap":
        devices = jax.local_device_count()
        return jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch)
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def compile_step(step: Callable, mesh: Mesh, mode: str) -> Callable:
    """Compiles `step(state, batch, key) -> (state, metrics)`, written for one device, over the mesh.

    The batch comes from `split`. The step sees its device's part and uses collectives over axis `"data"`;
    state, key and metrics are the same on every device. The state is donated.

    `mode`: "shard_map" (one program by `jit`) or "pmap". Both give the same numbers.
    """
    if mode == "shard_map":
        everywhere, split = PartitionSpec(), PartitionSpec(AXIS)
        mapped = jax.shard_map(
            step,
            mesh=mesh,
            in_specs=(everywhere, split, everywhere),
            out_specs=everywhere,
            # Under check_vma a gradient of replicated parameters arrives already summed over devices.
            check_vma=False,
        )
        return jax.jit(mapped, donate_argnums=0)
    if mode == "pmap":
        return jax.pmap(step, AXIS, in_axes=(None, 0, None), out_axes=None, donate_argnums=0)
    raise UserError(f"config.parallel={mode!r} is neither 'shard_map' nor 'pmap'")


def item_keys(key: jax.Array, count: int) -> jax.Array:
    """One key [count] for each of this device's items: a function of the item's place in the global batch, so
    that the numbers drawn do not depend on how many devices there are."""
    first = jax.lax.axis_index(AXIS) * count
    return jax.vmap(jax.random.fold_in, (None, 0))(key, first + jax.numpy.arange(count))
