"""Fixtures: a tiny system with its config, random parameters, a batch, and a trained run."""

from __future__ import annotations

import os
from pathlib import Path

# Compiling takes longer than running these tests, so XLA optimises little, and all test workers and the processes that
# they start share one compilation cache. Results depend bitwise on these settings, so they are also set below for this
# process, in case another library has already imported JAX.
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
    """Initial parameters plus noise: zero-initialised layers would hide mistakes."""

    def perturb(name):
        leaves, tree = jax.tree.flatten(jax.jit(system.stages[name].init)(jax.random.key(0)))
        rng = np.random.default_rng(1)
        perturbed = [x + 0.1 * rng.normal(size=x.shape).astype(np.float32) for x in leaves]
        return jax.tree.unflatten(tree, perturbed)

    return {name: perturb(name) for name in STAGES}


@pytest.fixture(scope="session")
def batch(dataset):
    clips = Clips(dataset, "test")
    return stack([clips[i] for i in range(6)])


@pytest.fixture(scope="session")
def fresh_config(dataset, tmp_path_factory):
    """Makes tiny configs, each with its own run directory; all share one compilation cache."""
    return lambda name: tiny_config(dataset, tmp_path_factory.mktemp(name), str(XLA_CACHE))


@pytest.fixture(scope="session")
def run(fresh_config):
    """The config of a finished training run of both stages."""
    config = fresh_config("trained")
    process = start_training(config)
    output = process.communicate(timeout=500)[0]
    assert process.returncode == 0, output
    return config
