"""Random streams: nothing that is drawn for one purpose is drawn again for another."""

import collections
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import set_stages

import slf_jax
from slf_jax.cascade.system import person_noise
from slf_jax.diffusion import noise, samplers
from slf_jax.streams import generator, stream
from slf_jax.training.loop import root_key
from slf_jax.training.preview import Preview
from slf_jax.training.state import start_state
from slf_jax.training.step import make_step
from tfrecords.reader import Clips

DRAWS = ("uniform", "normal", "bernoulli", "permutation")
DEVICES, PARTS = 2, 2


@pytest.fixture
def drawn(monkeypatch):
    """Counts keys by value: each time one is drawn from, or given to the network for its parameters or dropout."""
    counts = collections.Counter()

    def see(key):
        jax.debug.callback(lambda data: counts.update([tuple(data.tolist())]), jax.random.key_data(key))

    def watched(draw):
        def call(key, *args, **kwargs):
            see(key)
            return draw(key, *args, **kwargs)

        return call

    for name in DRAWS:
        monkeypatch.setattr(jax.random, name, watched(getattr(jax.random, name)))
    init = nn.Module.init_with_output  # `init` calls it too
    watching = lambda self, key, *args, **kwargs: see(key) or init(self, key, *args, **kwargs)  # noqa: E731
    monkeypatch.setattr(nn.Module, "init_with_output", watching)
    return counts


def draw_all(config, system, params, batch, people):
    """All that is random about two training steps of each stage, validation, a preview and sampling, seed 0 for all."""
    records = {key: value[:4] for key, value in batch.items()}
    place = np.arange(4, dtype=np.int32)
    spread = {**records, "batch_index": place, "stop": np.zeros(4, bool)}
    spread = {key: np.stack([value, value]) for key, value in spread.items()}
    spread["batch_index"] = np.stack([2 * place, 2 * place + 1])
    for name, stage in system.stages.items():
        root = root_key(0, name)
        stage.init(stream(root, "init"))
        one = make_step(system, name, optax.sgd(0.1), lambda count: 0.1, config.train)
        state = start_state(params[name], optax.sgd(0.1))
        # Two devices: an axis of that name is all that the step sees of them.
        several = jax.vmap(one, in_axes=(None, 0, None), axis_name="data")
        for number in range(2):
            several(state.replace(step=jnp.array(number)), spread, root)
        preview = Preview(config, system, name, people)
        preview._losses(params[name], records)
        if name == "base":  # the noise of both stages is drawn there
            preview._images(params[name], records)
    # Clips whose numbers are small: as the preview's, and as the numbers of steps and items.
    ways = [each.keys for each in person_noise(0, jnp.arange(4), jnp.arange(4) % 2).values()]
    sigmas = noise.karras_sigmas(3, 0.1, 5.0)
    for keys in ways:
        samplers.ancestral(lambda x, sigma: x, jnp.ones((4, 2, 2, 3)), sigmas, keys)


def test_no_key_is_used_for_two_purposes(config, system, params, batch, dataset, drawn):
    """Dropout of device 2 equalled an item's noise, the preview's first item a root of training (fault 19)."""
    changed = config.copy_and_resolve_references()
    set_stages(changed, accumulate=(PARTS, PARTS))
    changed.train.flip = True
    changed.sample.update(sampler="ancestral")

    @jax.jit
    def program(params):
        draw_all(changed, system, params, batch, Clips(dataset, "test"))

    program(params)
    jax.effects_barrier()
    items = 4 * DEVICES
    assert len(drawn) > 2 * 2 * 7 * items  # flips, drops, levels, noise... of two steps of two stages
    assert max(drawn.values()) == 1, [key for key, count in drawn.items() if count > 1]


def test_streams_are_a_function_of_name_and_number_alone():
    key = jax.random.key(0)
    many = stream(key, "item", jnp.arange(5))
    assert many[3] == stream(key, "item", 3)
    nested = stream(many, "draw", jnp.arange(5))
    assert nested[3] == stream(stream(key, "item", 3), "draw", 3) and stream(many, "noise")[2] == stream(
        many[2], "noise"
    )
    # Names: fixed for good, as runs are resumed by later versions.
    assert np.asarray(jax.random.key_data(stream(key, "item", 3))).tolist() == [1656273256, 764808633]
    assert len({*np.asarray(jax.random.key_data(jnp.concatenate([many, nested]))).ravel().tolist()}) == 20


def test_numpys_streams_are_named_too():
    """A random order of the gallery and faces of a gender were drawn from one and the same generator (fault 19)."""
    draws = [generator(0, name).integers(1 << 60, size=4).tolist() for name in ("random order", "same gender")]
    assert draws[0] != draws[1] and generator(0, "same gender").integers(1 << 60, size=4).tolist() == draws[1]


def test_keys_are_derived_by_name_everywhere():
    """Only one module folds numbers into keys, below names; nothing splits a key (fault 19)."""
    for path in Path(slf_jax.__file__).parent.rglob("*.py"):
        text = path.read_text()
        assert "random.split(" not in text and ("fold_in" not in text or path.name == "streams.py"), path
        assert "default_rng(seed" not in text, path
