"""The flow from the posterior mean against closed forms: linear Gaussian data, whose denoiser is exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slf_jax.diffusion import denoiser, flow, guidance, noise, samplers

STD, NOISE = 0.5, 0.2  # of the data given the conditions, and of the noise on their posterior mean
TIMES = noise.SigmaDistribution("uniform", 0, 1)
DETERMINISTIC = ("ddim", "heun", "dpmpp_2m")


def exact(mean):
    """E[x | z_s] for data ~ N(mean, STD^2), and their posterior mean at its level."""

    def denoise(z, time):
        s = denoiser.expand(time, z)
        gain = (1 - s) * STD**2 / ((1 - s) ** 2 * STD**2 + s**2 * NOISE**2)
        return mean + jnp.where(s == flow.MEAN_LEVEL, 0, gain * (z - mean))

    return denoise


def keys_for(x):
    return jax.random.split(jax.random.key(9), len(x))


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_samplers_take_the_source_to_the_data(name):
    """The exact flow multiplies the distance to the mean by STD / NOISE; one step returns the posterior mean."""
    observed = jax.random.normal(jax.random.key(0), (2000, 1, 1, 1))  # each has its own posterior
    denoise, unit = exact(0.8 * observed), jax.random.normal(jax.random.key(1), observed.shape)
    mean = flow.posterior_mean(denoise, unit)
    np.testing.assert_allclose(mean, 0.8 * observed)
    errors = []
    for steps in (1, 20, 40):
        found = samplers.SAMPLERS[name](denoise, mean + NOISE * unit, TIMES.sigmas(steps), keys_for(unit))
        errors.append(float(jnp.abs(found - (mean + STD * unit)).max()))
        if steps == 1:
            np.testing.assert_allclose(found, mean, atol=1e-6)
    assert abs(float((found - mean).std()) - STD) < 0.03
    assert errors[2] < 0.6 * errors[1] < 0.06 * errors[0], errors


def test_times_are_evenly_spaced():
    np.testing.assert_allclose(TIMES.sigmas(4), [1, 0.75, 0.5, 0.25, 0])
    np.testing.assert_allclose(TIMES(jnp.array([0.25, 0.5])), [0.25, 0.5])


def test_loss_starts_the_flow_at_the_posterior_mean_and_does_not_move_it():
    clean, unit = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 3))
    time, seen = jnp.array([0.1, 0.5, 1.0]), []

    def loss(estimate, after):
        def denoise(x, sigma, cond):
            seen.append((x, sigma))
            return estimate * jnp.ones_like(x) if sigma[0] == flow.MEAN_LEVEL else after(x)

        return flow.flow_loss(denoise, clean, NOISE * unit, time, None, jnp.full(3, 2.0))

    by_item = jnp.square(0.3 - clean).mean((1, 2, 3))
    np.testing.assert_allclose(loss(0.3, lambda x: clean), by_item, rtol=1e-5)
    (nothing, level), (z, at) = seen
    assert not nothing.any() and (level == flow.MEAN_LEVEL).all() and (at == time).all()
    s = denoiser.expand(time, clean)
    np.testing.assert_allclose(z, (1 - s) * clean + s * (0.3 + NOISE * unit), atol=1e-6)
    np.testing.assert_allclose(loss(0.3, lambda x: clean + 1), by_item + 2, rtol=1e-5)
    slope = jax.grad(lambda estimate: loss(estimate, lambda x: x).sum())(0.3)
    np.testing.assert_allclose(slope, 2 * (0.3 - clean).mean((1, 2, 3)).sum(), rtol=1e-4)


def test_guidance_moves_the_posterior_mean():
    """At its level like elsewhere: by the kind, within the interval, and with the correction."""
    like, uncond, cond = jnp.zeros((2, 1, 1, 1)), exact(-1.0), exact(1.0)
    guided = guidance.classifier_free((uncond, cond), (3.0,))
    assert (flow.posterior_mean(guided, like) == 5).all()
    for interval, expected in (((0.2, 2.0), 5), ((0.2, 1.0), 1)):
        within = guidance.guidance_interval(interval, guided, cond)
        assert (flow.posterior_mean(within, like) == expected).all()
        clipped = guidance.with_x0_correction(within, lambda x0: jnp.clip(x0, -2, 2))
        assert (flow.posterior_mean(clipped, like) == min(expected, 2)).all()


def test_restandardised_flow_equals_the_analytic_one():
    """Faces ~ N(0.4, 0.3^2) standardised without a thumbnail (0, 0.5), as with it (its image, 0.18), on their own way.

    The source of the flow is the mean of the faces, with noise of 0.1 * 0.5.
    """
    image, std = jax.random.normal(jax.random.key(0), (3, 4, 4, 3)), jnp.full((3, 1, 1, 1), 0.18)
    own = jnp.zeros_like(image), jnp.full((3, 1, 1, 1), 0.5)
    z, time = jax.random.normal(jax.random.key(1), image.shape), jnp.array([0.2, 0.9, flow.MEAN_LEVEL])
    s = denoiser.expand(time, z)

    def estimate(z, mean, std):  # E[x | z_s] in standardised units
        gain = (1 - s) * (0.3 / std) ** 2 / ((1 - s) ** 2 * (0.3 / std) ** 2 + s**2 * (0.05 / std) ** 2)
        center = (0.4 - mean) / std
        return jnp.where(s == flow.MEAN_LEVEL, center, center + gain * (z - center))

    def without(z, time, cond):
        np.testing.assert_array_equal(z[2], 0)
        return estimate(z, *own)

    found = flow.restandardised(without, own, (image, std))(z, time, None)
    np.testing.assert_allclose(found, estimate(z, image, std), atol=1e-4)
