"""AdamW with gradient clipping, linear warm-up and cosine decay."""

from __future__ import annotations

import optax

from slf_jax.training.settings import TrainSettings


def make_optimizer(settings: TrainSettings) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer of a stage, and its learning rate as a function of the number of updates so far.

    The rate rises linearly over `warmup_steps` updates, from 1/warmup_steps of the peak, and then decays by a cosine to
    `final_lr_fraction` of the peak at the last of the stage's `steps`.
    """
    peak, steps = settings.learning_rate, settings.steps
    warmup = max(1, min(settings.warmup_steps, steps // 2))
    schedule = optax.warmup_cosine_decay_schedule(
        peak / warmup, peak, warmup - 1, max(steps - 1, warmup), settings.final_lr_fraction * peak
    )
    adamw = optax.adamw(schedule, b2=0.99, weight_decay=settings.weight_decay)
    return optax.chain(optax.clip_by_global_norm(settings.grad_clip_norm), adamw), schedule
