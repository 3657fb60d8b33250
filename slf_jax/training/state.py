"""What a training step carries from one to the next."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from slf_jax.cascade.stage import Stage


@flax.struct.dataclass
class TrainState:
    """Everything the next step depends on, besides the config and the data.

    `skipped` counts the steps that changed nothing; `usual_loss` is the running mean against which spikes are measured.
    """

    step: jax.Array
    skipped: jax.Array
    usual_loss: jax.Array
    params: Any
    ema: Any
    opt_state: Any


def init_state(stage: Stage, optimizer: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """A fresh state with random parameters; one jitted program."""
    return jax.jit(lambda key: _fresh(stage.init(key), optimizer))(key)


def start_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """A fresh state with these parameters."""
    return jax.jit(lambda params: _fresh(params, optimizer))(params)


def _fresh(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    zero = jnp.zeros((), int)
    return TrainState(zero, zero, jnp.zeros(()), params, params, optimizer.init(params))
