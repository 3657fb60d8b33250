"""Named random streams: every key and generator is derived by a name that says what it is for, then by a number.

`fold_in(key, i)` equals `split(key, n)[i]`, so keys derived by numbers alone collide as soon as two purposes count
from 0. Here a hash of the purpose's name is folded in first, and numbers (of steps, items, devices) only after it. A
key is used either to draw numbers or to derive other keys, never both.
"""

from __future__ import annotations

import zlib

import jax
import jax.numpy as jnp
import numpy as np


def stream(key: jax.Array, name: str, number: jax.Array | int | None = None) -> jax.Array:
    """The key of the stream `name` below `key`, or of its member `number`; keys and numbers broadcast."""
    named = _fold_in(key, zlib.crc32(name.encode()))
    return named if number is None else _fold_in(named, number)


def generator(seed: int, name: str) -> np.random.Generator:
    """A NumPy generator for the stream `name` of a seed."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def _fold_in(key: jax.Array, number: jax.Array | int) -> jax.Array:
    number = jnp.asarray(number, jnp.uint32)
    shape = jnp.broadcast_shapes(key.shape, number.shape)
    if not shape:
        return jax.random.fold_in(key, number)
    keys, numbers = (jnp.broadcast_to(x, shape).ravel() for x in (key, number))
    return jax.vmap(jax.random.fold_in)(keys, numbers).reshape(shape)
