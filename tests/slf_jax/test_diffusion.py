"""Closed forms: a Gaussian's exact denoiser, the samplers' order of convergence, the identities of Karras et al."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slf_jax.diffusion import denoiser, guidance, noise, samplers

SIGMA_MAX = 80.0


def gaussian(mean, std):
    """The exact x0 estimate for data ~ N(mean, std^2)."""
    return lambda x, sigma: mean + std**2 / (std**2 + denoiser.expand(sigma, x) ** 2) * (x - mean)


def exact(x, mean, std):
    """Where the probability flow carries x from SIGMA_MAX to 0."""
    return mean + (x - mean) * std / np.sqrt(std**2 + SIGMA_MAX**2)


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_samplers_reach_a_gaussians_mean_and_spread(name):
    x = SIGMA_MAX * jax.random.normal(jax.random.key(0), (20_000, 1, 1, 1))
    sigmas = noise.karras_sigmas(40, 2e-3, SIGMA_MAX)
    data = np.asarray(samplers.SAMPLERS[name](gaussian(0.7, 0.3), x, sigmas))
    assert abs(data.mean() - 0.7) < 0.01 and abs(data.std() - 0.3) < 0.01


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_samplers_are_of_second_order(name):
    with jax.enable_x64(True):
        x = SIGMA_MAX * jnp.linspace(-2, 2, 9, dtype=jnp.float64).reshape(-1, 1, 1, 1)
        errors = []
        for steps in (40, 80, 160):
            # The last level is so small that the Euler step from it to 0 does not count.
            sigmas = np.append(np.geomspace(SIGMA_MAX, 1e-4, steps), 0.0)
            found = samplers.SAMPLERS[name](gaussian(0.7, 0.5), x, jnp.asarray(sigmas))
            errors.append(float(np.abs(np.asarray(found) - exact(np.asarray(x), 0.7, 0.5)).max()))
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert (orders > 1.7).all(), (errors, orders)


def test_one_step_lands_on_the_estimate():
    x, sigmas = jnp.ones((2, 1, 1, 1)), noise.karras_sigmas(1, 0.1, 5.0)
    expected = gaussian(0.2, 1.0)(x, jnp.full(2, 5.0))
    for sampler in samplers.SAMPLERS.values():
        np.testing.assert_allclose(sampler(gaussian(0.2, 1.0), x, sigmas), expected, rtol=1e-6)


def test_karras_levels():
    sigmas = noise.karras_sigmas(18, 0.002, 80, 7)
    assert len(sigmas) == 19 and sigmas[-1] == 0
    np.testing.assert_allclose(sigmas[[0, 17]], [80, 0.002], rtol=1e-5)
    assert (np.diff(sigmas) < 0).all()
    middle = (80 ** (1 / 7) + 9 / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(sigmas[9], middle, rtol=1e-5)
    with pytest.raises(ValueError, match="at least one"):
        noise.karras_sigmas(0, 1, 2)


def test_training_levels_are_lognormal_spread_and_bounded():
    uniform = jax.random.uniform(jax.random.key(0), (4096,))
    spread = noise.stratified(uniform, jnp.arange(4096), 4096)
    assert (np.floor(np.asarray(spread) * 4096 + 1e-3).astype(int) >= np.arange(4096) - 1).all()
    logs = np.log(np.asarray(noise.lognormal(spread, -0.4, 1.2)))
    assert abs(logs.mean() + 0.4) < 0.01 and abs(logs.std() - 1.2) < 0.02
    extreme = np.asarray(noise.lognormal(jnp.array([1e-6, 1 - 1e-6]), 0.0, 50.0))
    np.testing.assert_allclose(extreme, noise.SIGMA_RANGE, rtol=1e-6)


def test_edm_coefficients_keep_unit_variance():
    sigma = jnp.geomspace(1e-2, 1e2, 20)
    skip, out, inp, c_noise = denoiser.coefficients("edm", sigma)
    np.testing.assert_allclose(inp**2 * (1 + sigma**2), 1, rtol=1e-5)  # the network's input
    # The network's target (x0 - c_skip x) / c_out, x = x0 + sigma n.
    np.testing.assert_allclose(((1 - skip) ** 2 + (skip * sigma) ** 2) / out**2, 1, rtol=1e-4)
    np.testing.assert_allclose(c_noise, np.log(sigma) / 4, rtol=1e-6)
    weight = (sigma**2 + 1) / sigma**2
    np.testing.assert_allclose(weight * out**2, 1, rtol=1e-4)  # every level starts with the same loss


def test_x0_preconditioning_is_the_network_itself():
    denoise = denoiser.make_denoiser(lambda x, c_noise, cond: x * 0 + cond, "x0")
    np.testing.assert_allclose(denoise(jnp.ones((3, 1, 1, 1)), jnp.array([0.1, 1.0, 9.0]), 0.5), 0.5)
    with pytest.raises(ValueError, match="edm"):
        denoiser.coefficients("none", jnp.ones(1))


def test_the_loss_is_zero_for_the_truth_and_weighted_otherwise():
    clean = jax.random.normal(jax.random.key(0), (3, 4, 4, 3))
    sigma = jnp.array([0.1, 1.0, 10.0])
    args = (clean, jnp.ones_like(clean), sigma, None)
    assert not denoiser.denoising_loss(lambda x, s, c: clean, *args, max_weight=9.0).any()
    loss = denoiser.denoising_loss(lambda x, s, c: clean + 1, *args, max_weight=9.0)
    np.testing.assert_allclose(loss, [9.0, 2.0, 1.01], rtol=1e-5)


def test_guidance_scales():
    conditional, null = gaussian(1.0, 0.5), gaussian(-1.0, 0.5)
    x, sigma = jnp.linspace(-3, 3, 3).reshape(-1, 1, 1, 1), jnp.full(3, 0.7)
    at = lambda scale: guidance.classifier_free(conditional, null, scale)(x, sigma)  # noqa: E731
    np.testing.assert_allclose(at(0.0), null(x, sigma), rtol=1e-6)
    np.testing.assert_allclose(at(1.0), conditional(x, sigma), rtol=1e-5)
    each = at(jnp.array([0.0, 1.0, 3.0]))
    np.testing.assert_allclose(each[2], null(x, sigma)[2] + 3 * (conditional(x, sigma) - null(x, sigma))[2], rtol=1e-5)
    np.testing.assert_allclose(each[0], at(0.0)[0], rtol=1e-6)


def test_matching_the_average_is_the_nearest_image_that_does():
    image = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    guide = jax.random.normal(jax.random.key(1), (2, 4, 4, 3))
    matched = guidance.match_average(image, guide)
    np.testing.assert_allclose(guidance.area_average(matched, 4), guide, atol=1e-5)
    # A projection: what was added is constant on each square, and doing it twice adds nothing.
    added = matched - image
    np.testing.assert_allclose(added, guidance.area_average(added, 4).repeat(4, 1).repeat(4, 2), atol=1e-5)
    np.testing.assert_allclose(guidance.match_average(matched, guide), matched, atol=1e-5)
