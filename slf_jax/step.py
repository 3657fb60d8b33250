"""One training step as one device sees it: loss, gradients, AdamW, EMA, and the numbers that tell how it goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import optax

from slf_jax import cascade, features, parallel
from slf_jax.settings import for_stage
from slf_jax.state import TrainState
from slf_jax.streams import stream

BUCKETS = 4  # of noise levels, each equally likely in training, for which the loss is reported apart

Step = Callable[[TrainState, Mapping, jax.Array], tuple[TrainState, dict]]


def make_optimizer(
    settings: ml_collections.ConfigDict, name: str
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """AdamW behind gradient clipping, and its learning rate by how many updates were made before.

    The rate rises linearly over `warmup` updates, the first of which has 1/warmup of it, then falls by a cosine to
    `final_rate` of the peak, which the last of `steps` updates has.
    """
    peak, steps = for_stage(settings.learning_rate, name), for_stage(settings.steps, name)
    warmup = max(1, min(settings.warmup, steps // 2))
    schedule = optax.warmup_cosine_decay_schedule(
        peak / warmup, peak, warmup - 1, max(steps - 1, warmup), settings.final_rate * peak
    )
    adamw = optax.adamw(schedule, b2=0.99, weight_decay=settings.weight_decay)
    return optax.chain(optax.clip_by_global_norm(settings.clip), adamw), schedule


def make_step(
    system: cascade.System, name: str, optimizer: optax.GradientTransformation, schedule: optax.Schedule,
    settings: ml_collections.ConfigDict,
) -> Step:  # fmt: skip
    """`step(state, batch, key) -> (state, metrics)`, with collectives over axis `"data"`.

    The batch: raw records, and for each its `place` in the global batch (whatever is random about an item follows
    from that, so the numbers do not depend on how items are spread over devices) and `stop`, true where its
    process was asked to end. A step whose loss or gradient is not finite changes nothing but the counters, nor does
    one whose loss is a spike (`settings.skip_spikes`).
    """
    stage = system.stages[name]
    loss_of = make_loss(system, name, settings)
    accumulate = for_stage(settings.accumulate, name)

    def step(state: TrainState, batch: Mapping, key: jax.Array) -> tuple[TrainState, dict]:
        key = stream(key, "step", state.step)
        grads, (loss, sigma) = _gradients(loss_of, state.params, batch, key, accumulate)
        mean, grads = jax.lax.pmean((loss.mean(), grads), parallel.AXIS)
        norm = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # Warm-up: a young average forgets its random start quickly.
        decay = jnp.minimum(settings.ema, (1 + state.step) / (10 + state.step))
        ema = optax.incremental_update(params, state.ema, 1 - decay)
        finite = jnp.isfinite(mean) & jnp.isfinite(norm)
        good, usual = _judge(state, mean, finite, settings.skip_spikes)
        # As the optimiser counts, which forgets the steps that are skipped.
        rate = schedule(state.step - state.skipped)
        kept = (params, ema, opt_state), (state.params, state.ema, state.opt_state)
        kept = jax.tree.map(lambda new, old: jnp.where(good, new, old), *kept)
        state = TrainState(state.step + 1, state.skipped + ~good, usual, *kept)
        return state, {
            "loss": mean,
            "loss_by_sigma": jax.lax.psum(by_level(stage, loss, sigma), parallel.AXIS),
            "grad_norm": norm,
            "param_norm": optax.tree.norm(state.params),
            "update_norm": optax.tree.norm(updates),
            "learning_rate": rate,
            "skipped": state.skipped,
            "finite": finite,
            "stop": jax.lax.psum(batch["stop"].any().astype(int), parallel.AXIS) > 0,
        }

    return step


def make_loss(system: cascade.System, name: str, settings: ml_collections.ConfigDict) -> Callable:
    """`loss(params, batch, key, dropout, total) -> (mean, (loss [B], sigma [B]))` of some items of a global batch.

    `key` is the step's, `dropout` the key of these items' dropout, `total` the size of the global batch.
    """
    stage = system.stages[name]

    def loss_of(params: Any, batch: Mapping, key: jax.Array, dropout: jax.Array, total: int) -> tuple[jax.Array, tuple]:
        keys = stream(key, "item", batch["place"])
        faces = cascade.to_float(batch["face"])
        if settings.flip:
            mirrored = jax.vmap(jax.random.bernoulli)(stream(keys, "flip"))[:, None, None, None]
            faces = jnp.where(mirrored, faces[:, :, ::-1], faces)
        matrix, mask = system.features(batch)
        mask = features.drop(
            stream(keys, "conditions"), mask, system.layout, settings.constituent_drop, settings.cond_drop
        )
        loss, sigma = stage.loss(
            params, faces, matrix, mask, keys, batch["place"], total,
            guide_drop=settings.guide_drop, dropout=dropout,
        )  # fmt: skip
        return loss.mean(), (loss, sigma)

    return loss_of


def _gradients(
    loss_of: Callable, params: Any, batch: Mapping, key: jax.Array, parts: int
) -> tuple[Any, tuple[jax.Array, jax.Array]]:
    """Mean gradient over a device's items, and each item's loss and sigma; in `parts`, one after the other."""
    gradient = jax.grad(loss_of, has_aux=True)
    total = jax.lax.axis_size(parallel.AXIS) * len(batch["face"])
    # The only thing here that depends on the number of devices: masks are drawn for all of a device's activations.
    dropout = stream(key, "dropout", jax.lax.axis_index(parallel.AXIS))
    if parts == 1:
        return gradient(params, batch, key, dropout, total)

    def add(grads: Any, numbered: tuple[Mapping, jax.Array]) -> tuple[Any, tuple]:
        part, number = numbered
        more, aux = gradient(params, part, key, stream(dropout, "part", number), total)
        return jax.tree.map(jnp.add, grads, more), aux

    split = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)
    grads, aux = parallel.scan(add, jax.tree.map(jnp.zeros_like, params), (split, jnp.arange(parts)))
    return jax.tree.map(lambda g: g / parts, grads), jax.tree.map(jnp.ravel, aux)


def _judge(state: TrainState, loss: jax.Array, finite: jax.Array, spikes: float) -> tuple[jax.Array, jax.Array]:
    """Whether a step counts, and the running mean of the loss that spikes are measured against."""
    usual = jnp.where(state.step == 0, loss, state.usual_loss)
    limit = spikes * usual if spikes else jnp.inf
    decay = jnp.minimum(0.99, (1 + state.step) / (10 + state.step))
    # A spike counts as the limit, so that a loss that stays high becomes the usual one.
    moved = decay * usual + (1 - decay) * jnp.minimum(loss, limit)
    return finite & (loss <= limit), jnp.where(finite, moved, state.usual_loss)


def by_level(stage: cascade.Stage, loss: jax.Array, sigma: jax.Array) -> jax.Array:
    """Sums [2, BUCKETS] of losses and of items in each bucket of noise levels, low to high."""
    edges = jnp.log(stage.levels(jnp.arange(1, BUCKETS) / BUCKETS))
    bucket = jnp.searchsorted(edges, jnp.log(sigma))
    return jnp.zeros((2, BUCKETS)).at[:, bucket].add(jnp.stack([loss, jnp.ones(len(loss))]))


def first_not_finite(loss_of: Callable, params: Any, batch: Mapping, key: jax.Array) -> str:
    """The first module whose output is not finite for a batch, or else the first parameter whose gradient is not.

    Runs op by op on one device, since only there can a module's output be looked at as it is made.
    """
    found: list[str] = []

    def watch(call: Callable, args: tuple, kwargs: Mapping, context: nn.module.InterceptorContext) -> Any:
        out = call(*args, **kwargs)
        # What a rematerialised block holds are no numbers yet; the block's own output is.
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
        return "nothing that can be found by doing the step again"
    return f"the gradient of {jax.tree_util.keystr(path, simple=True, separator='/')}"


def _is_finite(leaf: Any) -> bool:
    return bool(jnp.isfinite(leaf).all())
