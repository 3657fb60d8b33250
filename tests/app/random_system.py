"""A small system with random parameters, to draw with; what it draws is noise."""

from __future__ import annotations

import os

# Compiling takes longer than running these tests, so XLA optimises little.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

import jax
import numpy as np

from app.system import FaceSystem
from extract.extractors import registry
from slf_common.config import load_config
from slf_jax import features
from slf_jax.cascade.sizes import STAGES
from slf_jax.cascade.system import build_system
from slf_jax.inference.trained import Trained
from slf_jax.training.checkpoints import Meta
from tfrecords.schema import Schema

EXTRACTORS = ("pyaudioanalysis", "mel")
jax.config.update("jax_disable_most_optimizations", True)
SIZES = dict(
    width=16, mults=(1,), blocks=(1,), self_attention=(True,), cross_attention=(True,), head_width=8, cond_width=16
)


def make_system() -> FaceSystem:
    """The demo's system at toy sizes."""
    config = load_config("configs/demo.py")
    config.model.base.update(SIZES, patch=4)
    config.model.upsampler.update(SIZES, patch=16)
    config.data.inputs = (*EXTRACTORS, "age", "gender", "ethnicity")
    config.sample.steps = 3
    settings = {name: dict(config.extract.get(name, {})) for name in EXTRACTORS}
    parts = tuple(each.constituent for each in registry.load({"extractors": EXTRACTORS, **settings}))
    statistics = {
        part.name: {"mean": np.zeros(part.width, np.float32), "std": np.ones(part.width, np.float32)} for part in parts
    }
    meta = Meta(config, Schema(parts), statistics, {"extractors": settings})
    system = build_system(config, features.make_layout(meta.schema), statistics)
    params = {name: jax.jit(system.stages[name].init)(jax.random.key(0)) for name in STAGES}
    return FaceSystem(Trained(meta, system, params, dict.fromkeys(STAGES, "random")))
