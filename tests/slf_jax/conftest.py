"""Tiny systems: configured, with random parameters, trained."""

from __future__ import annotations

import os
from pathlib import Path

# Compiling takes longer than running what these tests run: it is done with few optimisations, and once for all test
# workers and for the processes that they start. Bits depend on it, so this process must do likewise, even where another
# library has imported JAX before.
XLA_CACHE = Path(__file__).parents[2] / ".pytest_cache" / "xla"
os.environ |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_COMPILATION_CACHE_DIR": str(XLA_CACHE)}

import jax
import numpy as np
import pytest
from tiny import start_training, tiny_config

from slf_jax import distributed, features
from slf_jax.cascade.sizes import STAGES
from slf_jax.cascade.system import build_system
from tfrecords.reader import Clips, stack

jax.config.update("jax_disable_most_optimizations", True)
distributed.use_compilation_cache(str(XLA_CACHE))


@pytest.fixture(scope="session")
def config(dataset, tmp_path_factory):
    return tiny_config(dataset, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def system(config, dataset):
    clips = Clips(dataset)
    return build_system(config, features.make_layout(clips.schema), clips.statistics)


@pytest.fixture(scope="session")
def params(system):
    """Random parameters, moved off their initial values: zero-initialised layers would hide mistakes."""

    def stir(name):
        leaves, tree = jax.tree.flatten(jax.jit(system.stages[name].init)(jax.random.key(0)))
        rng = np.random.default_rng(1)
        moved = [x + 0.1 * rng.normal(size=x.shape).astype(np.float32) for x in leaves]
        return jax.tree.unflatten(tree, moved)

    return {name: stir(name) for name in STAGES}


@pytest.fixture(scope="session")
def batch(dataset):
    clips = Clips(dataset, "test")
    return stack([clips[i] for i in range(6)])


@pytest.fixture(scope="session")
def fresh_config(dataset, tmp_path_factory):
    """Makes tiny configs with a run directory of their own; what one run compiles, the next finds in the cache."""
    return lambda name: tiny_config(dataset, tmp_path_factory.mktemp(name), str(XLA_CACHE))


@pytest.fixture(scope="session")
def run(fresh_config):
    """A finished training run of both stages: its config."""
    config = fresh_config("trained")
    process = start_training(config)
    output = process.communicate(timeout=500)[0]
    assert process.returncode == 0, output
    return config
