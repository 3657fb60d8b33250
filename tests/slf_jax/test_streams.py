"""Random streams: no key is used for two purposes."""

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
from slf_jax.cascade.distillation import Teacher, add_parameters
from slf_jax.cascade.settings import sample_settings
from slf_jax.cascade.system import build_system, person_noise
from slf_jax.diffusion import noise, samplers
from slf_jax.streams import generator, stream
from slf_jax.training.loop import root_key
from slf_jax.training.preview import Preview
from slf_jax.training.settings import train_settings
from slf_jax.training.state import start_state
from slf_jax.training.step import make_step
from tfrecords.reader import Clips

pytestmark = pytest.mark.slow

DRAWS = ("uniform", "normal", "bernoulli", "permutation")
DEVICES, PARTS = 2, 2


@pytest.fixture
def key_uses(monkeypatch):
    """Counts how often each key is used, in a random draw or by the network for its parameters or dropout."""
    uses = collections.Counter()

    def count(key):
        jax.debug.callback(lambda data: uses.update([tuple(data.tolist())]), jax.random.key_data(key))

    def counted(draw):
        def call(key, *args, **kwargs):
            count(key)
            return draw(key, *args, **kwargs)

        return call

    for name in DRAWS:
        monkeypatch.setattr(jax.random, name, counted(getattr(jax.random, name)))
    init = nn.Module.init_with_output  # `init` calls it too
    counted_init = lambda self, key, *args, **kwargs: count(key) or init(self, key, *args, **kwargs)  # noqa: E731
    monkeypatch.setattr(nn.Module, "init_with_output", counted_init)
    return uses


def draw_all(config, system, params, batch, people, teacher=None):
    """Runs everything random: two training steps of each stage, validation, a preview and sampling, all with seed 0."""
    taught_by = teacher.params if teacher else dict.fromkeys(params)
    records = {key: value[:4] for key, value in batch.items()}
    index = np.arange(4, dtype=np.int32)
    batches = {**records, "batch_index": index, "stop": np.zeros(4, bool)}
    batches = {key: np.stack([value, value]) for key, value in batches.items()}
    batches["batch_index"] = np.stack([2 * index, 2 * index + 1])
    for name, stage in system.stages.items():
        root = root_key(0, name)
        stage.init(stream(root, "init"))
        one = make_step(system, name, optax.sgd(0.1), lambda count: 0.1, train_settings(config, name), teacher)
        state = start_state(params[name], optax.sgd(0.1))
        # Simulates two devices: the step uses only the name of their axis.
        several = jax.vmap(one, in_axes=(None, 0, None, None), axis_name="data")
        for number in range(2):
            several(state.replace(step=jnp.array(number)), batches, root, taught_by[name])
        preview = Preview(config, system, name, people, teacher, taught_by[name])
        preview._losses(params[name], records, taught_by[name])
        if name == "base":  # draws the noise of both stages
            preview._images(params[name], records)
    # Small clip numbers, which could collide with those of the preview, of steps and of items.
    keys_of_stages = [each.keys for each in person_noise(0, jnp.arange(4), jnp.arange(4) % 2).values()]
    sigmas = noise.karras_sigmas(3, 0.1, 5.0)
    for keys in keys_of_stages:
        samplers.ancestral(lambda x, sigma: x, jnp.ones((4, 2, 2, 3)), sigmas, keys)


def test_no_key_is_used_for_two_purposes(config, system, params, batch, dataset, key_uses):
    """Dropout on device 2 shared its key with an item's noise, the preview's first item with training (fault 19)."""
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
    assert len(key_uses) > 2 * 2 * 7 * items  # flips, drops, levels, noise... of two steps of two stages
    assert max(key_uses.values()) == 1, [key for key, number in key_uses.items() if number > 1]


def test_nor_in_distillation(config, system, params, batch, dataset, key_uses):
    distilled = config.copy_and_resolve_references()
    distilled.distill.update(max_scale=8.0, groups=("mel", "age+gender"))
    student = build_system(distilled, system.layout, system.statistics)
    teacher = Teacher(system, params, sample_settings(config), (("mel",), ("age", "gender")), 8.0, 1)

    @jax.jit
    def program(params):
        initial = {name: stage.init(stream(jax.random.key(1), name)) for name, stage in student.stages.items()}
        params = {name: add_parameters(params[name], initial[name]) for name in params}
        draw_all(distilled, student, params, batch, Clips(dataset, "test"), teacher)

    program(params)
    jax.effects_barrier()
    assert max(key_uses.values()) == 1, [key for key, number in key_uses.items() if number > 1]


def test_streams_depend_only_on_name_and_number():
    key = jax.random.key(0)
    many = stream(key, "item", jnp.arange(5))
    assert many[3] == stream(key, "item", 3)
    nested = stream(many, "draw", jnp.arange(5))
    assert nested[3] == stream(stream(key, "item", 3), "draw", 3) and stream(many, "noise")[2] == stream(
        many[2], "noise"
    )
    # Names and values must not change, as later versions resume existing runs.
    assert np.asarray(jax.random.key_data(stream(key, "item", 3))).tolist() == [1656273256, 764808633]
    assert len({*np.asarray(jax.random.key_data(jnp.concatenate([many, nested]))).ravel().tolist()}) == 20


def test_numpy_generators_are_named_too():
    """The random order of the gallery and the faces of a gender came from the same generator (fault 19)."""
    draws = [generator(0, name).integers(1 << 60, size=4).tolist() for name in ("random order", "same gender")]
    assert draws[0] != draws[1] and generator(0, "same gender").integers(1 << 60, size=4).tolist() == draws[1]


def test_keys_are_derived_by_name_everywhere():
    """Only streams.py folds numbers into keys, after a name; no module splits a key (fault 19)."""
    for path in Path(slf_jax.__file__).parent.rglob("*.py"):
        text = path.read_text()
        assert "random.split(" not in text and ("fold_in" not in text or path.name == "streams.py"), path
        assert "default_rng(seed" not in text, path
