"""One training step on one device: loss, gradients, optimizer update, EMA, and metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from slf_jax import distributed, features
from slf_jax.cascade.distillation import Teacher
from slf_jax.cascade.images import to_float
from slf_jax.cascade.stage import Lesson, Stage
from slf_jax.cascade.system import System
from slf_jax.streams import stream
from slf_jax.training.settings import TrainSettings
from slf_jax.training.state import TrainState

BUCKETS = 4  # ranges of noise levels, equally likely in training, for which the loss is reported separately
Step = Callable[..., tuple[TrainState, dict]]


def make_step(
    system: System, name: str, optimizer: optax.GradientTransformation, schedule: optax.Schedule,
    settings: TrainSettings, teacher: Teacher | None = None,
) -> Step:  # fmt: skip
    """`step(state, batch, key) -> (state, metrics)`, with collectives over axis `"data"`.

    With a teacher, the step takes its parameters of the stage as well: `step(state, batch, key, params)`.

    A batch contains raw records, the `batch_index` of each in the global batch (an item's random key is derived from
    it, so that results do not depend on how items are distributed over devices), and `stop`, true where the item's
    process was asked to stop. A step whose loss or gradient is not finite, or whose loss is a spike
    (`settings.skip_spikes`), changes only the counters.
    """
    stage = system.stages[name]

    def step(state: TrainState, batch: Mapping, key: jax.Array, taught_by: Any = None) -> tuple[TrainState, dict]:
        loss_of = make_loss(system, name, settings, teacher.lesson(name, taught_by) if teacher else None)
        key = stream(key, "step", state.step)
        grads, (loss, sigma, cosine) = _gradients(loss_of, state.params, batch, key, settings.accumulate)
        mean, grads = distributed.mean((loss.mean(), grads))
        norm = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # Warm-up, so that the average quickly forgets its random initialisation.
        decay = jnp.minimum(settings.ema_decay, (1 + state.step) / (10 + state.step))
        ema = optax.incremental_update(params, state.ema, 1 - decay)
        finite = jnp.isfinite(mean) & jnp.isfinite(norm)
        good, usual = _check_loss(state, mean, finite, settings.skip_spikes)
        # The optimizer does not count skipped steps.
        rate = schedule(state.step - state.skipped)
        new, old = (params, ema, opt_state), (state.params, state.ema, state.opt_state)
        kept = jax.tree.map(lambda new, old: jnp.where(good, new, old), new, old)
        state = TrainState(state.step + 1, state.skipped + ~good, usual, *kept)
        return state, {
            "loss": mean,
            "loss_by_sigma": jax.lax.psum(bucket_by_sigma(stage, loss, sigma), distributed.AXIS),
            **({} if cosine is None else {"identity_cosine": _mean_known(cosine)}),
            "grad_norm": norm,
            "param_norm": optax.tree.norm(state.params),
            "update_norm": optax.tree.norm(updates),
            "learning_rate": rate,
            "skipped": state.skipped,
            "finite": finite,
            "stop": jax.lax.psum(batch["stop"].any().astype(int), distributed.AXIS) > 0,
        }

    return step


def make_loss(system: System, name: str, settings: TrainSettings, lesson: Lesson | None = None) -> Callable:
    """`loss(params, batch, key, dropout, total) -> (objective, (loss [B], sigma [B], cosine [B]))` of B items of a
    global batch.

    The objective is the mean denoising loss, with a lesson the mean distillation loss. An identity head adds
    `settings.identity_weight` times the mean of 1 - cosine between the predicted embedding of the face and its own (NaN
    where it or all conditions are unknown; without this head, `cosine` is None).
    `key` is the step's key, `dropout` the key of these items' dropout masks, `total` the size of the global batch.
    """
    stage = system.stages[name]

    def loss_of(params: Any, batch: Mapping, key: jax.Array, dropout: jax.Array, total: int) -> tuple[jax.Array, tuple]:
        keys = stream(key, "item", batch["batch_index"])
        faces = to_float(batch["face"])
        if settings.flip:
            mirrored = jax.vmap(jax.random.bernoulli)(stream(keys, "flip"))[:, None, None, None]
            faces = jnp.where(mirrored, faces[:, :, ::-1], faces)
        matrix, mask = system.features(batch)
        if settings.embedding_noise:
            matrix = features.add_noise(
                stream(keys, "embedding noise"), matrix, system.layout, settings.embedding_noise
            )
        mask = features.drop(
            stream(keys, "conditions"), mask, system.layout, settings.constituent_drop, settings.cond_drop
        )
        loss, sigma, cond = stage.loss(
            params, faces, matrix, mask, keys, batch["batch_index"], total,
            thumbnail_drop=settings.thumbnail_drop, dropout=dropout, lesson=lesson,
        )  # fmt: skip
        cosine = system.identity_cosine(cond, batch, mask)
        distance = 0.0 if cosine is None else jnp.where(jnp.isnan(cosine), 0, 1 - cosine).mean()
        return loss.mean() + settings.identity_weight * distance, (loss, sigma, cosine)

    return loss_of


def _mean_known(values: jax.Array) -> jax.Array:
    """Mean over the devices' values that are not NaN."""
    total, count = jax.lax.psum((jnp.nansum(values), jnp.isfinite(values).sum()), distributed.AXIS)
    return total / jnp.maximum(count, 1)


def _gradients(
    loss_of: Callable, params: Any, batch: Mapping, key: jax.Array, parts: int
) -> tuple[Any, tuple[jax.Array, jax.Array, jax.Array | None]]:
    """Mean gradient over a device's items, and each item's loss, sigma and cosine, computed in `parts` microbatches."""
    gradient = jax.grad(loss_of, has_aux=True)
    total = jax.lax.axis_size(distributed.AXIS) * len(batch["face"])
    # Dropout is all that depends on the number of devices: one key draws the masks of all of a device's items.
    dropout = stream(key, "dropout", jax.lax.axis_index(distributed.AXIS))
    if parts == 1:
        return gradient(params, batch, key, dropout, total)

    def add(grads: Any, part_and_number: tuple[Mapping, jax.Array]) -> tuple[Any, tuple]:
        part, number = part_and_number
        more, aux = gradient(params, part, key, stream(dropout, "part", number), total)
        return jax.tree.map(jnp.add, grads, more), aux

    split = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)
    grads, aux = distributed.scan(add, jax.tree.map(jnp.zeros_like, params), (split, jnp.arange(parts)))
    return jax.tree.map(lambda g: g / parts, grads), jax.tree.map(jnp.ravel, aux)


def _check_loss(state: TrainState, loss: jax.Array, finite: jax.Array, spikes: float) -> tuple[jax.Array, jax.Array]:
    """Whether to apply a step, and the new running mean of the loss, to which spikes are compared."""
    usual = jnp.where(state.step == 0, loss, state.usual_loss)
    limit = spikes * usual if spikes else jnp.inf
    decay = jnp.minimum(0.99, (1 + state.step) / (10 + state.step))
    # A spike counts as the limit in the mean, so that a loss that stays high becomes the usual one.
    updated = decay * usual + (1 - decay) * jnp.minimum(loss, limit)
    return finite & (loss <= limit), jnp.where(finite, updated, state.usual_loss)


def bucket_by_sigma(stage: Stage, loss: jax.Array, sigma: jax.Array) -> jax.Array:
    """Sums of losses and numbers of items, [2, BUCKETS], in each range of noise levels from low to high."""
    edges = jnp.log(stage.sigmas(jnp.arange(1, BUCKETS) / BUCKETS))
    bucket = jnp.searchsorted(edges, jnp.log(sigma))
    return jnp.zeros((2, BUCKETS)).at[:, bucket].add(jnp.stack([loss, jnp.ones(len(loss))]))


def first_not_finite(loss_of: Callable, params: Any, batch: Mapping, key: jax.Array) -> str:
    """The first module whose output is not finite for a batch, or else the first parameter whose gradient is not.

    Runs op by op on one device, since each module's output can only be inspected there.
    """
    found: list[str] = []

    def watch(call: Callable, args: tuple, kwargs: Mapping, context: nn.module.InterceptorContext) -> Any:
        out = call(*args, **kwargs)
        # Inside a rematerialised block all values are tracers; the output of the block itself is concrete.
        if not all(isinstance(leaf, jax.core.Tracer) or _is_finite(leaf) for leaf in jax.tree.leaves(out)):
            found.append("/".join((type(context.module).__name__, *context.module.path)))
        return out

    arguments = (batch, key, stream(key, "dropout", 0), len(batch["face"]))
    with nn.intercept_methods(watch):
        loss_of(params, *arguments)
    if found:
        return f"the output of {found[0]}"
    grads, _ = jax.jit(jax.grad(loss_of, has_aux=True), static_argnums=4)(params, *arguments)
    bad = (path for path, leaf in jax.tree_util.tree_leaves_with_path(grads) if not _is_finite(leaf))
    path = next(bad, None)
    if path is None:
        return "not found when the step is repeated"
    return f"the gradient of {jax.tree_util.keystr(path, simple=True, separator='/')}"


def _is_finite(leaf: Any) -> bool:
    return bool(jnp.isfinite(leaf).all())
