"""Kinds of guidance against closed forms, with every sampler; the data are Gaussian, so that denoisers are linear."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slf_jax.diffusion import denoiser, guidance, noise, samplers

NUMBERS = {"rescaled_phi": 0.7, "apg_eta": 0.2, "apg_r": 0.1, "apg_beta": -0.5, "cfgpp_renoise": 1.0}
SIGMAS = noise.karras_sigmas(6, 0.05, 20.0)
MEANS = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)  # conditional, unconditional


def gaussian(mean, std):
    """The exact x0 estimate for data ~ N(mean, std^2)."""
    return lambda x, sigma: mean + std**2 / (std**2 + denoiser.expand(sigma, x) ** 2) * (x - mean)


COND, UNCOND, HALFWAY = gaussian(MEANS[0], 0.5), gaussian(MEANS[1], 0.8), gaussian(MEANS.mean(0), 0.6)


def keys_for(x):
    return jax.random.split(jax.random.key(9), len(x))


@pytest.fixture(scope="module")
def estimates():
    """x and sigma, and the conditional and unconditional estimates there in float64 [3, 192]."""
    x, sigma = 2 * jax.random.normal(jax.random.key(1), (3, 8, 8, 3)), jnp.array([0.3, 1.0, 3.0])
    flat = (np.asarray(denoise(x, sigma), np.float64).reshape(3, -1) for denoise in (COND, UNCOND))
    return x, sigma, *flat


def evaluate(guided, x, sigma):
    """The x0 estimate of the first evaluation [B, 192]."""
    guided = guidance.as_guided(guided)
    return np.asarray(guided.evaluate(x, sigma, guided.start(x)).x0, np.float64).reshape(len(x), -1)


def rms(values):
    return np.sqrt((values**2).mean(1))


def test_rescaled_has_the_standard_deviation_of_the_conditional_estimate(estimates):
    x, sigma, cond, uncond = estimates
    cfg = uncond + 5 * (cond - uncond)
    full, mixed, none = (evaluate(guidance.rescaled((UNCOND, COND), (5.0,), phi), x, sigma) for phi in (1.0, 0.7, 0.0))
    np.testing.assert_allclose(full.std(1), cond.std(1), rtol=1e-4)
    np.testing.assert_allclose(full, cfg * (cond.std(1) / cfg.std(1))[:, None], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(mixed, 0.7 * full + 0.3 * cfg, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(none, cfg, rtol=1e-4, atol=1e-5)


def test_apg_damps_the_parallel_part_and_limits_the_norm(estimates):
    x, sigma, cond, uncond = estimates

    def update(eta, r):
        guided = guidance.adaptive_projected(
            (UNCOND, COND), (5.0,), eta, r, -0.5
        )  # the first evaluation has no momentum
        return (evaluate(guided, x, sigma) - cond) / 4

    whole, parallel = cond - uncond, cond * ((cond - uncond) * cond).sum(1, keepdims=True) / (cond**2).sum(1)[:, None]
    np.testing.assert_allclose(update(1.0, 0.0), whole, atol=1e-4)  # is cfg
    np.testing.assert_allclose(update(0.0, 0.0), whole - parallel, atol=1e-4)
    np.testing.assert_allclose(update(0.2, 0.0), whole - 0.8 * parallel, atol=1e-4)
    assert np.abs((update(0.0, 0.0) * cond).sum(1)).max() < 1e-2 < np.abs((whole * cond).sum(1)).min()
    middle = float(np.median(rms(whole)))
    np.testing.assert_allclose(rms(update(1.0, middle)), np.minimum(rms(whole), middle), rtol=1e-4)
    limited = whole * np.minimum(1, middle / rms(whole))[:, None]
    np.testing.assert_allclose(update(1.0, middle), limited, atol=1e-4)


def test_apg_sums_the_updates_with_momentum():
    """Of Gaussians with equal deviation, the estimates differ by (1 - c) (m_cond - m_uncond) wherever x is."""
    x0, beta, std = jnp.full((1, 1, 1, 1), 3.0), -0.5, 0.6
    guided = guidance.adaptive_projected((gaussian(-1.0, std), gaussian(1.0, std)), (4.0,), 1.0, 0.0, beta)
    shrink = std**2 / (std**2 + SIGMAS[:-1].astype(float) ** 2)
    x = 3.0
    for k, (sigma, following) in enumerate(zip(SIGMAS[:-1], SIGMAS[1:], strict=True)):
        update = sum(beta ** (k - j) * 2 * (1 - shrink[j]) for j in range(k + 1))
        estimate = 1 + shrink[k] * (x - 1) + 3 * update
        x = estimate + following / sigma * (x - estimate)
    np.testing.assert_allclose(samplers.ddim(guided, x0, SIGMAS, keys_for(x0)).item(), x, rtol=1e-4)


def counting():
    """A denoiser whose estimate is the number of evaluations before."""
    return guidance.Guided(
        lambda x, sigma, count: guidance.Estimate(jnp.full_like(x, count), None, count + 1), lambda x: jnp.zeros(())
    )


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_samplers_hand_memory_from_evaluation_to_evaluation(name):
    x = jnp.ones((1, 1, 1, 1))
    evaluations = 2 * 6 - 1 if name == "heun" else 6
    assert samplers.SAMPLERS[name](counting(), x, SIGMAS, keys_for(x)).item() == evaluations - 1


def test_evaluations_outside_the_interval_leave_the_memory():
    x, interval = jnp.ones((1, 1, 1, 1)), (0.0, float(SIGMAS[2]))  # excludes the first two levels
    guided = guidance.guidance_interval(interval, counting(), lambda x, sigma: -jnp.ones_like(x))
    assert samplers.ddim(guided, x, SIGMAS, keys_for(x)).item() == 3


def cfg_with(scale_at):
    """cfg with a scale that depends on sigma."""
    return lambda x, sigma: guidance.classifier_free((UNCOND, COND), (scale_at(sigma),))(x, sigma)


def test_a_ddim_step_of_cfgpp_is_one_of_cfg_at_a_larger_scale():
    """Geometric levels without the step to 0: a step of ratio q is cfg at renoise + (scale - renoise) / (1 - q)."""
    sigmas = np.geomspace(20, 0.5, 6)
    q, x = sigmas[1] / sigmas[0], 20 * jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    run = jax.jit(lambda guided, x: samplers.ddim(guided, x, sigmas, keys_for(x)), static_argnums=0)
    found = {
        (scale, renoise): run(guidance.cfg_plus_plus((UNCOND, COND), (scale,), renoise), x)
        for scale, renoise in ((1.6, 1.0), (1.6 - q, 0.0), (0.6, 0.0))
    }
    for (scale, renoise), images in found.items():
        each = renoise + (scale - renoise) / (1 - q)
        expected = run(cfg_with(lambda sigma, each=each: jnp.full_like(sigma, each)), x)
        np.testing.assert_allclose(images, expected, atol=2e-4)
    # To renoise with the conditional estimate is the published method with lambda = scale - q.
    np.testing.assert_allclose(found[1.6, 1.0], found[1.6 - q, 0.0], atol=2e-4)
    assert np.abs(found[1.6, 1.0] - found[0.6, 0.0]).max() > 0.1


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_cfgpp_adds_the_guidance_to_the_unconditional_flow(name):
    """As published (Chung et al. 2024): each step adds lambda (D_cond - D_uncond) to x; all else is unconditional.

    Without guidance, x shrinks towards sigma 0 by std / sqrt(std^2 + sigma^2), its mean in ancestral sampling by the
    square of that.
    """
    std, mean, scale, sigmas = 0.5, 0.1, 0.3, np.append(np.geomspace(10, 0.01, 300), 0.0)
    count = 4096 if name == "ancestral" else 1
    x = jnp.full((count, 1, 1, 1), 5.0)
    guided = guidance.cfg_plus_plus((gaussian(0.0, std), gaussian(mean, std)), (scale,), 0.0)
    found = samplers.SAMPLERS[name](guided, x, sigmas, keys_for(x)).mean()
    shrink = (std**2 / (std**2 + sigmas**2)) ** (1 if name == "ancestral" else 0.5)
    added = scale * mean * (sigmas**2 / (std**2 + sigmas**2))[:-1] @ shrink[1:]
    assert added > 0.5
    np.testing.assert_allclose(found, 5 * shrink[0] + added, rtol=0.03)


def test_a_scale_for_each_group_of_inputs(estimates):
    """`D_0 + s_1 (D_1 - D_0) + s_2 (D_2 - D_1)`, as one group where the scales are equal, for every kind."""
    x, sigma, cond, uncond = estimates
    middle = np.asarray(HALFWAY(x, sigma), np.float64).reshape(3, -1)
    chain = (UNCOND, HALFWAY, COND)
    found = evaluate(guidance.classifier_free(chain, (3.0, 0.5)), x, sigma)
    np.testing.assert_allclose(found, uncond + 3 * (middle - uncond) + 0.5 * (cond - middle), atol=1e-4)
    rows = evaluate(guidance.classifier_free(chain, jnp.array([[3.0, 0.0, 1.0], [0.5, 2.0, 1.0]])), x, sigma)
    np.testing.assert_allclose(rows[0], found[0], atol=1e-4)
    np.testing.assert_allclose(rows[2], cond[2], atol=1e-4)
    linear = NUMBERS | {"apg_eta": 1.0, "apg_r": 0.0}  # the parts of apg's update add up only without the limit
    for kind in guidance.KINDS:
        both = evaluate(guidance.guide(kind, chain, (4.0, 4.0), linear), x, sigma)
        one = evaluate(guidance.guide(kind, (UNCOND, COND), (4.0,), linear), x, sigma)
        np.testing.assert_allclose(both, one, rtol=1e-4, atol=2e-4, err_msg=kind)
        first = evaluate(guidance.guide(kind, chain, (1.0, 0.0), NUMBERS), x, sigma)
        np.testing.assert_allclose(first, middle, atol=1e-4, err_msg=kind)
    largest = evaluate(guidance.rescaled(chain, (3.0, 0.5), 1.0), x, sigma)
    np.testing.assert_allclose(largest.std(1), cond.std(1), rtol=1e-4)


def test_autoguidance_is_added_to_that_of_the_inputs(estimates):
    """`cond + (s - 1) (cond - uncond) + (a - 1) (cond - weak)`; cfg for a = 1, autoguidance alone for s = 1."""
    x, sigma, cond, uncond = estimates
    weak = np.asarray(HALFWAY(x, sigma), np.float64).reshape(3, -1)
    for s, a in ((3.0, 2.5), (3.0, 1.0), (1.0, 4.0), (0.0, 1.0), (1.0, 0.0)):
        scales = guidance.weak_scales(jnp.array([s, a]))
        found = evaluate(guidance.classifier_free((UNCOND, HALFWAY, COND), scales), x, sigma)
        expected = cond + (s - 1) * (cond - uncond) + (a - 1) * (cond - weak)
        np.testing.assert_allclose(found, expected, atol=2e-4, err_msg=f"{s}, {a}")


def test_sampling_without_guidance_leaves_out_the_groups_of_scale_zero(estimates):
    x, sigma, cond, uncond = estimates
    middle = np.asarray(HALFWAY(x, sigma), np.float64).reshape(3, -1)
    expected = {(2, 3): cond, (0.5, 4): cond, (3, 0): middle, (0, 0): uncond, (0, 2): uncond + cond - middle}
    for scales, estimate in expected.items():
        found = guidance.unguided((UNCOND, HALFWAY, COND), scales, jnp.asarray(0 in scales))(x, sigma)
        np.testing.assert_allclose(np.asarray(found).reshape(3, -1), estimate, atol=1e-4, err_msg=str(scales))


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_scale_zero_is_unconditional_and_one_conditional_for_every_kind(name):
    """With estimates clipped and matched to a thumbnail, in one program over scales, with and without an interval."""
    x = SIGMAS[0] * jax.random.normal(jax.random.key(2), (2, 8, 8, 3))
    thumbnail = jnp.linspace(-0.5, 0.5, 24).reshape(2, 2, 2, 3)

    def correct(x0):
        return guidance.match_average(guidance.threshold(x0, "static", 1.0), thumbnail)

    def sample(denoise):
        return samplers.SAMPLERS[name](guidance.with_x0_correction(denoise, correct), x, SIGMAS, keys_for(x))

    @jax.jit
    def program(scales, numbers):
        found = {}
        for kind in guidance.KINDS:
            guided = lambda scale, kind=kind: guidance.guide(kind, (UNCOND, COND), (scale,), numbers)  # noqa: E731
            inside = lambda scale, g=guided: guidance.guidance_interval((0.5, 5.0), g(scale), COND)  # noqa: E731
            found[kind] = jax.vmap(lambda scale, g=guided: sample(g(scale)))(scales)
            found[f"{kind} in an interval"] = jax.vmap(lambda scale, i=inside: sample(i(scale)))(scales)
        return found, sample(UNCOND), sample(COND)

    found, uncond, cond = program(jnp.array([0.0, 1.0, 6.0]), NUMBERS)
    assert np.abs(cond - uncond).max() > 0.1
    for kind, images in found.items():
        np.testing.assert_allclose(images[1], cond, atol=1e-4, err_msg=kind)
        if "interval" not in kind:
            np.testing.assert_allclose(images[0], uncond, atol=1e-4, err_msg=kind)
        assert np.abs(images[2] - cond).max() > 0.01, kind
        np.testing.assert_allclose(guidance.area_average(images[2], 2), thumbnail, atol=1e-4)
    others = program(jnp.array([0.0, 1.0, 6.0]), {"rescaled_phi": 0.1, "apg_eta": 0.9, "apg_r": 0.0, "apg_beta": 0.0,
                                                  "cfgpp_renoise": 2.0})[0]  # fmt: skip
    assert program._cache_size() == 1
    assert all(np.abs(others[kind][2] - found[kind][2]).max() > 0.01 for kind in ("rescaled", "apg", "cfgpp"))
