"""Closed forms: the exact denoiser of a Gaussian, orders of convergence, identities of Karras et al."""

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
    """The solution of the probability flow ODE from x at SIGMA_MAX to sigma 0."""
    return mean + (x - mean) * std / np.sqrt(std**2 + SIGMA_MAX**2)


def keys_for(x):
    return jax.random.split(jax.random.key(9), len(x))


def churning(denoise, x, sigmas, keys):
    return samplers.heun(denoise, x, sigmas, keys, churn=20.0)


@pytest.mark.parametrize(
    "sampler, steps, tolerance",
    [("heun", 40, 0.01), ("dpmpp_2m", 40, 0.01), ("churn", 40, 0.02), ("ddim", 40, 0.03), ("ancestral", 400, 0.01)],
)
def test_samplers_reach_the_mean_and_std_of_a_gaussian(sampler, steps, tolerance):
    x = SIGMA_MAX * jax.random.normal(jax.random.key(0), (20_000, 1, 1, 1))
    sigmas = noise.karras_sigmas(steps, 2e-3, SIGMA_MAX)
    run = (samplers.SAMPLERS | {"churn": churning})[sampler]
    data = np.asarray(run(gaussian(0.7, 0.3), x, sigmas, keys_for(x)))
    assert abs(data.mean() - 0.7) < 0.01 and abs(data.std() - 0.3) < tolerance


@pytest.mark.parametrize("name, order", [("ddim", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_samplers_converge_with_their_order(name, order):
    with jax.enable_x64(True):
        x = SIGMA_MAX * jnp.linspace(-2, 2, 9, dtype=jnp.float64).reshape(-1, 1, 1, 1)
        errors = []
        for steps in (40, 80, 160):
            # The last level is so small that the final Euler step to 0 is negligible.
            sigmas = jnp.asarray(np.append(np.geomspace(SIGMA_MAX, 1e-4, steps), 0.0))
            found = samplers.SAMPLERS[name](gaussian(0.7, 0.5), x, sigmas, keys_for(x))
            errors.append(float(np.abs(np.asarray(found) - exact(np.asarray(x), 0.7, 0.5)).max()))
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert (np.abs(orders - order) < 0.3).all() or (order == 2 and (orders > 1.7).all()), (errors, orders)


def test_restandardised_denoiser_equals_the_analytic_one():
    """Faces ~ N(0.4, 0.3^2), standardised as with a thumbnail (its image, 0.18) and without (0, 0.5)."""
    mean, std = jax.random.normal(jax.random.key(0), (2, 4, 4, 3)), jnp.full((2, 1, 1, 1), 0.18)
    own = jnp.zeros_like(mean), jnp.full((2, 1, 1, 1), 0.5)
    x, sigma = 3 * jax.random.normal(jax.random.key(1), mean.shape), jnp.array([0.5, 7.0])
    without = lambda x, sigma, cond: gaussian((0.4 - own[0]) / own[1], 0.3 / own[1])(x, sigma)  # noqa: E731
    found = denoiser.restandardised(without, own, (mean, std))(x, sigma, None)
    np.testing.assert_allclose(found, gaussian((0.4 - mean) / std, 0.3 / std)(x, sigma), atol=1e-4)
    same = denoiser.restandardised(without, own, own)(x, sigma, None)
    np.testing.assert_allclose(same, without(x, sigma, None), atol=1e-5)


def test_ancestral_step_equals_the_ddpm_posterior():
    """Ho et al. 2020, Eq. 6-7, in their variance-preserving parameterisation."""
    betas = np.linspace(1e-4, 0.02, 1000)
    bars = np.cumprod(1 - betas)
    t, x0, count = 400, 0.3, 200_000
    x_t = 0.9
    mean = np.sqrt(bars[t - 1]) * betas[t] / (1 - bars[t]) * x0
    mean += np.sqrt(1 - betas[t]) * (1 - bars[t - 1]) / (1 - bars[t]) * x_t
    variance = (1 - bars[t - 1]) / (1 - bars[t]) * betas[t]
    sigmas = np.sqrt((1 - bars) / bars)[[t, t - 1]]
    x = jnp.full((count, 1, 1, 1), x_t / np.sqrt(bars[t]))
    found = samplers.ancestral(lambda x, sigma: jnp.full_like(x, x0), x, jnp.asarray(sigmas), keys_for(x))
    found = np.asarray(found, np.float64) * np.sqrt(bars[t - 1])
    np.testing.assert_allclose(found.mean(), mean, atol=5 * np.sqrt(variance / count))
    np.testing.assert_allclose(found.var(), variance, rtol=0.02)


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_one_step_returns_the_estimate(name):
    x, sigmas = jnp.ones((2, 1, 1, 1)), noise.karras_sigmas(1, 0.1, 5.0)
    expected = gaussian(0.2, 1.0)(x, jnp.full(2, 5.0))
    found = samplers.SAMPLERS[name](gaussian(0.2, 1.0), x, sigmas, keys_for(x))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("run", [*samplers.SAMPLERS.values(), churning])
def test_program_size_does_not_grow_with_steps(run):
    x = jnp.ones((2, 4, 4, 3))
    sizes = {
        len(str(jax.make_jaxpr(lambda x, s: run(gaussian(0.0, 1.0), x, s, keys_for(x)))(x, jnp.ones(steps + 1))))
        for steps in (100, 900)
    }
    assert max(sizes) - min(sizes) < 50  # the program text contains array lengths


@pytest.mark.parametrize("run", [samplers.ancestral, churning])
def test_sampling_noise_depends_on_the_key_of_the_item(run):
    x, order = jax.random.normal(jax.random.key(0), (4, 2, 2, 3)), np.array([2, 0, 3, 1])
    sigmas, keys = noise.karras_sigmas(5, 0.1, 5.0), keys_for(x)
    whole = run(gaussian(0.2, 1.0), x, sigmas, keys)
    np.testing.assert_array_equal(run(gaussian(0.2, 1.0), x[order], sigmas, keys[order]), whole[order])
    assert not np.array_equal(run(gaussian(0.2, 1.0), x, sigmas, keys[order]), whole)


def test_karras_sigmas():
    sigmas = noise.karras_sigmas(18, 0.002, 80, 7)
    assert len(sigmas) == 19 and sigmas[-1] == 0
    np.testing.assert_allclose(sigmas[[0, 17]], [80, 0.002], rtol=1e-5)
    assert (np.diff(sigmas) < 0).all()
    middle = (80 ** (1 / 7) + 9 / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(sigmas[9], middle, rtol=1e-5)
    with pytest.raises(ValueError, match="at least one"):
        noise.karras_sigmas(0, 1, 2)


def test_training_sigmas_are_lognormal_stratified_and_bounded():
    uniform = jax.random.uniform(jax.random.key(0), (4096,))
    strata = noise.stratified(uniform, jnp.arange(4096), 4096)
    assert (np.floor(np.asarray(strata) * 4096 + 1e-3).astype(int) >= np.arange(4096) - 1).all()
    logs = np.log(np.asarray(noise.SigmaDistribution("lognormal", -0.4, 1.2)(strata)))
    assert abs(logs.mean() + 0.4) < 0.01 and abs(logs.std() - 1.2) < 0.02
    extreme = np.asarray(noise.SigmaDistribution("lognormal", 0.0, 50.0)(jnp.array([1e-6, 1 - 1e-6])))
    np.testing.assert_allclose(extreme, noise.SIGMA_RANGE, rtol=1e-6)


@pytest.mark.parametrize(
    "kind, log_snr",
    [
        ("linear", {0.0: 9.21, 0.1: 2.25, 0.2: 0.709, 0.5: -2.41, 0.9: -8.10, 0.999: -9.98, 1.0: -10.0}),
        ("cosine", {0.0: 8.77, 0.1: 3.55, 0.2: 2.18, 0.5: -0.03, 0.9: -3.70, 1.0: -2 * np.log(200)}),
    ],
)
def test_log_snr_of_the_variance_preserving_schedules(kind, log_snr):
    """Values of imagen-pytorch in float64, except for the end of cosine, which is bounded here."""
    found = -2 * np.log(np.asarray(noise.SigmaDistribution(kind, 0, 1)(jnp.array(list(log_snr)))))
    np.testing.assert_allclose(found, list(log_snr.values()), atol=0.006)


@pytest.mark.parametrize("kind", noise.DISTRIBUTIONS)
def test_sampling_sigmas_follow_the_training_distribution(kind):
    levels = noise.SigmaDistribution(kind, -0.4, 1.2)
    sigmas = levels.sigmas(50)
    assert len(sigmas) == 51 and sigmas[-1] == 0 and (np.diff(sigmas) < 0).all()
    np.testing.assert_allclose(sigmas[25], levels(jnp.array(0.5)), rtol=1e-5)
    assert sigmas[0] > 100 and jax.jit(lambda: jnp.asarray(levels.sigmas(50)))().shape == (51,)
    with pytest.raises(ValueError, match="at least one"):
        levels.sigmas(0)


def test_edm_coefficients_keep_unit_variance():
    sigma = jnp.geomspace(1e-2, 1e2, 20)
    skip, out, inp, c_noise = denoiser.coefficients("edm", sigma)
    np.testing.assert_allclose(inp**2 * (1 + sigma**2), 1, rtol=1e-5)  # the network's input
    # The network's target (x0 - c_skip x) / c_out, x = x0 + sigma n.
    np.testing.assert_allclose(((1 - skip) ** 2 + (skip * sigma) ** 2) / out**2, 1, rtol=1e-4)
    np.testing.assert_allclose(c_noise, np.log(sigma) / 4, rtol=1e-6)
    weight = (sigma**2 + 1) / sigma**2
    np.testing.assert_allclose(weight * out**2, 1, rtol=1e-4)  # every level starts with the same loss


def test_each_preconditioning_predicts_its_textbook_target():
    """If the network returns the textbook target, the denoiser returns the clean data."""
    clean, unit = jax.random.normal(jax.random.key(0), (2, 3, 1, 1, 1))
    sigma = jnp.array([0.1, 1.0, 9.0])
    scale = denoiser.expand(jnp.sqrt(1 + sigma**2), clean)
    alpha, noisy = 1 / scale, denoiser.expand(sigma, clean) / scale
    x = clean + denoiser.expand(sigma, clean) * unit
    targets = {"x0": clean, "eps": unit, "v": alpha * unit - noisy * clean, "edm": noisy * clean - alpha * unit}
    targets["flow"] = unit  # of a flow, whose line from clean to clean + unit is x at the time sigma
    assert set(targets) == set(denoiser.PRECONDITIONINGS)
    for kind, target in targets.items():
        inputs = []

        def network(x, c_noise, cond, target=target, inputs=inputs):
            inputs.append(x)
            return target

        denoise = denoiser.make_denoiser(network, kind)
        np.testing.assert_allclose(denoise(x, sigma, None), clean, atol=1e-5)
        np.testing.assert_allclose(inputs[0], x if kind == "flow" else alpha * clean + noisy * unit, atol=1e-5)
    with pytest.raises(ValueError, match="edm"):
        denoiser.coefficients("none", jnp.ones(1))


def test_loss_is_zero_for_a_perfect_estimate_and_weighted_otherwise():
    clean = jax.random.normal(jax.random.key(0), (3, 4, 4, 3))
    args = (clean, jnp.ones_like(clean), jnp.array([0.1, 1.0, 10.0]), None)
    weight = jnp.array([9.0, 2.0, 1.01])
    assert not denoiser.denoising_loss(lambda x, s, c: clean, *args, weight).any()
    np.testing.assert_allclose(denoiser.denoising_loss(lambda x, s, c: clean + 1, *args, weight), weight, rtol=1e-5)


def test_loss_weights_match_the_literature():
    sigma, gamma = jnp.geomspace(0.1, 10, 9), 5.0
    snr = 1 / sigma**2
    np.testing.assert_allclose(denoiser.loss_weight("edm", sigma, 9.0), jnp.minimum(snr + 1, 9.0), rtol=1e-5)
    # Hang et al. 2023 give the weight of each network output's own error; the outputs' errors differ by c_out.
    published = {"x0": jnp.minimum(snr, gamma), "eps": jnp.minimum(snr, gamma) / snr}
    published["v"] = jnp.minimum(snr, gamma) / (snr + 1)
    for kind, weight in published.items():
        c_out = denoiser.coefficients(kind, sigma)[1]
        np.testing.assert_allclose(denoiser.loss_weight("snr", sigma, gamma) * c_out**2, weight, rtol=1e-4)
    with pytest.raises(ValueError, match="edm, snr"):
        denoiser.loss_weight("p2", sigma, gamma)


def test_guidance_scales():
    conditional, uncond = gaussian(1.0, 0.5), gaussian(-1.0, 0.5)
    x, sigma = jnp.linspace(-3, 3, 3).reshape(-1, 1, 1, 1), jnp.full(3, 0.7)
    at = lambda scale: guidance.classifier_free((uncond, conditional), (scale,))(x, sigma)  # noqa: E731
    np.testing.assert_allclose(at(0.0), uncond(x, sigma), rtol=1e-6)
    np.testing.assert_allclose(at(1.0), conditional(x, sigma), rtol=1e-5)
    each = at(jnp.array([0.0, 1.0, 3.0]))
    np.testing.assert_allclose(
        each[2], uncond(x, sigma)[2] + 3 * (conditional(x, sigma) - uncond(x, sigma))[2], rtol=1e-5
    )
    np.testing.assert_allclose(each[0], at(0.0)[0], rtol=1e-6)


def test_match_average_returns_the_nearest_matching_image():
    image = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    thumbnail = jax.random.normal(jax.random.key(1), (2, 4, 4, 3))
    matched = guidance.match_average(image, thumbnail)
    np.testing.assert_allclose(guidance.area_average(matched, 4), thumbnail, atol=1e-5)
    # A projection: the change is constant on each square, and repeating it changes nothing.
    added = matched - image
    np.testing.assert_allclose(added, guidance.area_average(added, 4).repeat(4, 1).repeat(4, 2), atol=1e-5)
    np.testing.assert_allclose(guidance.match_average(matched, thumbnail), matched, atol=1e-5)


def test_match_average_in_range():
    """Even if every pixel of a square must become black or white."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(1.5 * rng.normal(size=(2, 16, 16, 3)).astype(np.float32))
    thumbnail = (
        jnp.asarray(rng.uniform(-1, 1, (2, 4, 4, 3)).astype(np.float32)).at[0, 0, 0].set(1.0).at[1, 1, 1].set(-1.0)
    )
    matched = guidance.match_average_in_range(images, thumbnail)
    np.testing.assert_allclose(guidance.area_average(matched, 4), thumbnail, atol=1e-5)
    assert np.abs(matched).max() <= 1
    # The nearest image: all pixels that were not clipped moved by the same amount.
    moved = np.asarray(matched - jnp.clip(images, -1, 1))[0, 4:8, 4:8, 0]
    free = np.abs(np.asarray(matched)[0, 4:8, 4:8, 0]) < 1
    assert free.sum() > 1 and np.ptp(moved[free]) < 1e-5
    easy = images / 10
    near = guidance.area_average(easy, 4) + 0.1
    np.testing.assert_allclose(
        guidance.match_average_in_range(easy, near), guidance.match_average(easy, near), atol=1e-5
    )


def test_thresholds():
    images = jnp.stack([jnp.linspace(-4, 4, 48).reshape(4, 4, 3), jnp.linspace(-0.5, 0.5, 48).reshape(4, 4, 3)])
    static, dynamic, none = (guidance.threshold(images, kind, 0.9) for kind in ("static", "dynamic", "none"))
    np.testing.assert_array_equal(static, jnp.clip(images, -1, 1))
    np.testing.assert_array_equal(none, images)
    most = np.quantile(np.abs(images[0]), 0.9)
    np.testing.assert_allclose(dynamic[0], np.clip(images[0], -most, most) / most, rtol=1e-5)
    np.testing.assert_array_equal(dynamic[1], images[1])  # within [-1, 1] already


def test_null_branch_is_not_computed_outside_the_interval():
    calls = []

    def uncond(x, sigma):
        jax.debug.callback(lambda s: calls.append(float(s)), sigma[0])
        return gaussian(-1.0, 0.5)(x, sigma)

    conditional = gaussian(1.0, 0.5)
    sigmas = noise.karras_sigmas(10, 0.05, 20.0)

    @jax.jit
    def sample(scales):
        def at(scale):
            both = guidance.classifier_free((uncond, conditional), (scale,))
            guided = guidance.guidance_interval((0.5, 5.0), both, conditional)
            x = jnp.ones((2, 1, 1, 1))
            return samplers.ddim(guided, sigmas[0] * x, sigmas, keys_for(x))

        return jax.vmap(at)(scales)

    found = jax.block_until_ready(sample(jnp.array([1.0, 3.0])))
    jax.effects_barrier()
    expected = [s for s in sigmas if 0.5 < s <= 5.0]
    np.testing.assert_allclose(sorted(set(calls), reverse=True), expected, rtol=1e-5)
    x = jnp.ones((2, 1, 1, 1))
    np.testing.assert_allclose(found[0], samplers.ddim(conditional, sigmas[0] * x, sigmas, keys_for(x)), rtol=1e-4)
    assert np.abs(found[1] - found[0]).max() > 0.01
