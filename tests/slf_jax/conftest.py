"""Fixtures: a tiny system with its config, random parameters, a batch, and a trained run."""

from __future__ import annotations

from fast_xla import XLA_CACHE  # isort: skip  (before JAX)

import jax
import numpy as np
import pytest
from tiny import start_training, tiny_config, with_attention

from slf_jax import features
from slf_jax.cascade.sizes import STAGES
from slf_jax.cascade.system import build_system
from tfrecords.reader import Clips, stack


@pytest.fixture(scope="session")
def config(dataset, tmp_path_factory):
    return with_attention(tiny_config(dataset, tmp_path_factory.mktemp("run")))


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
def run(dataset, once):
    """The config of a finished training run of both stages, which all test workers share; tests must not change it."""

    def make(workdir):
        process = start_training(tiny_config(dataset, workdir, str(XLA_CACHE)))
        output = process.communicate(timeout=500)[0]
        assert process.returncode == 0, output

    return tiny_config(dataset, once("trained", make), str(XLA_CACHE))
