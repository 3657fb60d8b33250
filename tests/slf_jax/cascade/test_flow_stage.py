"""A cascade of flows from posterior means: sampling by hand, guidance, independence of people, and training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from slf_jax.cascade.images import make_thumbnail, to_float
from slf_jax.cascade.settings import sample_settings
from slf_jax.cascade.sizes import STAGES
from slf_jax.cascade.system import build_system, person_noise
from slf_jax.diffusion import flow, guidance, samplers

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def flows(config, system):
    """The tiny system with a flow in each stage."""
    changed = config.copy_and_resolve_references()
    for name in STAGES:
        changed.diffusion[name].update(preconditioning="flow", weight="snr", max_weight=100.0)
    return build_system(changed, system.layout, system.statistics)


@pytest.fixture(scope="module")
def sample(flows, params, config):
    """Samples people with the base stage, from scales [S], or [S, G] of `groups`, to images [S, B, 32, 32, 3].

    `sample(batch, scales, people=None, groups=(), thumbnail=True, **changed settings)`; each choice of groups and
    settings is compiled once.
    """
    programs = {}

    def compiled(groups, changes):
        settings = dataclasses.replace(sample_settings(config), **changes)

        @jax.jit
        def program(batch, people, scales, has_thumbnail):
            thumbnails, pairs = make_thumbnail(to_float(batch["face"])), jnp.stack([scales, scales], 1)
            return flows.sample(
                {"base": params["base"]}, batch, thumbnails * has_thumbnail, jnp.full(len(people), has_thumbnail),
                person_noise(0, people), pairs, settings, ("base",), groups=groups,
            )  # fmt: skip

        return program

    def run(batch, scales, people=None, groups=(), thumbnail=True, **changes):
        program = programs.setdefault(f"{groups} {changes}", compiled(groups, changes))
        people = jnp.arange(len(batch["face"])) if people is None else people
        return np.asarray(program(batch, people, jnp.array(scales, jnp.float32), float(thumbnail)))

    return run


def test_scale_one_is_the_conditional_flow_from_the_conditional_mean(flows, params, batch, sample):
    thumbnails, keys = make_thumbnail(to_float(batch["face"])), jax.random.split(jax.random.key(0), 6)
    stage, p, first = flows.stages["base"], params["base"], person_noise(0, jnp.arange(6))["base"].first
    lowres = stage.lowres_cond(thumbnails, jnp.ones(6), jnp.zeros(6))
    cond, denoise = stage.condition(p, *flows.features(batch)), stage.denoiser(p, lowres)

    @jax.jit
    def estimate(x, time):
        clipped = jnp.clip(lowres.image + stage.sigma_data * denoise(x, time, cond), -1, 1)
        return (guidance.match_average(clipped, thumbnails) - lowres.image) / stage.sigma_data

    x = estimate(jnp.zeros_like(first), jnp.full(6, flow.MEAN_LEVEL)) + 0.1 * 0.5 * first
    data = samplers.ddim(estimate, x, np.linspace(1, 0, 4, dtype=np.float32), keys)
    image = guidance.match_average_in_range(lowres.image + stage.sigma_data * data, thumbnails)
    found = sample(batch, [0, 1, 6], sampler="ddim", init_noise_scale=0.5)
    np.testing.assert_allclose(found[1], image, atol=2e-3)


def test_scale_zero_ignores_the_conditions_and_people_are_independent(sample, batch):
    changes = dict(sampler="ddim", init_noise_scale=0.5)
    first = sample(batch, [0, 1, 6], **changes)
    rolled = {key: value if key == "face" else np.roll(value, 1, 0) for key, value in batch.items()}
    np.testing.assert_array_equal(first[0], sample(rolled, [0, 1, 6], **changes)[0])
    order = np.array([4, 1, 0, 5, 3, 2])
    moved = sample({key: value[order] for key, value in batch.items()}, [6, 1, 0], jnp.array(order), **changes)
    np.testing.assert_allclose(moved, first[::-1, order], atol=1e-3)
    assert np.abs(first[1] - first[0]).mean() > 1e-3 and np.abs(first[2] - first[1]).mean() > 1e-3
    np.testing.assert_allclose(make_thumbnail(first[2]), make_thumbnail(to_float(batch["face"])), atol=1e-4)


def test_apg_equals_cfg_at_scales_0_and_1(sample, batch):
    """In an interval of times, where the posterior mean is guided too."""
    interval = dict(guidance_interval=((0.5, 2.0), ()), sampler="ddim", init_noise_scale=0.5)
    cfg, apg = (sample(batch, [0, 1, 6], guidance=kind, **interval) for kind in ("cfg", "apg"))
    np.testing.assert_allclose(apg[:2], cfg[:2], atol=1e-3)
    assert np.isfinite(apg).all() and np.abs(apg[2] - cfg[2]).mean() > 1e-3


def test_the_thumbnail_has_its_own_scale(flows, sample, batch):
    """Named last: at 0 faces are those without it, whatever the scale of the other inputs; at 1 those with it."""
    changes = dict(sampler="ddim", init_noise_scale=0.5)
    found = sample(batch, [[1, 0], [3, 0], [1, 1]], groups=(flows.inputs, ("thumbnail",)), **changes)
    without, given = (sample(batch, [1, 3], thumbnail=each, **changes) for each in (False, True))
    np.testing.assert_allclose(found[:2], without, atol=1e-3)
    np.testing.assert_allclose(found[2], given[0], atol=1e-3)
    assert np.abs(without[0] - given[0]).mean() > 1e-2


def test_training_lowers_the_loss(flows, batch):
    stage, keys = flows.stages["base"], jax.random.split(jax.random.key(0), 6)
    faces, inputs = to_float(batch["face"]), flows.features(batch)
    optimizer = optax.adam(3e-3)

    def loss(p):
        found, times, _ = stage.loss(p, faces, *inputs, keys, jnp.arange(6), 6, thumbnail_drop=0.0)
        return found.mean(), times

    @jax.jit
    def step(p, state):
        (value, times), grads = jax.value_and_grad(loss, has_aux=True)(p)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(p, updates), state, value, times

    p, losses = jax.jit(stage.init)(jax.random.key(0)), []
    state = optimizer.init(p)
    for _ in range(20):
        p, state, value, times = step(p, state)
        losses.append(float(value))
    assert ((times > 0) & (times <= 1)).all() and np.ptp(times) > 0.6
    assert losses[-1] < 0.7 * losses[0], losses
