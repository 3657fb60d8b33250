"""The training state, which each step updates."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from slf_jax.cascade.stage import Stage
from slf_jax.pytrees import serializable


@flax.struct.dataclass
class TrainState:
    """Everything that the next step depends on besides config and data.

    Attributes:
      step: steps so far, skipped ones included.
      skipped: steps that changed nothing, because of a spike or a value that is not finite.
      usual_loss: running mean of the loss, to which spikes are compared.
      params, ema, opt_state: parameters, their moving average, and the optimizer's state.
    """

    step: jax.Array
    skipped: jax.Array
    usual_loss: jax.Array
    params: Any
    ema: Any
    opt_state: Any


serializable(TrainState)


def init_state(stage: Stage, optimizer: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """A new state with random parameters, made by one jitted program."""
    return jax.jit(lambda key: _new_state(stage.init(key), optimizer))(key)


def start_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """A new state with these parameters."""
    return jax.jit(lambda params: _new_state(params, optimizer))(params)


def _new_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    zero = jnp.zeros((), int)
    return TrainState(zero, zero, jnp.zeros(()), params, params, optimizer.init(params))
