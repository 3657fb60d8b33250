"""A student's tasks: its teacher's guided estimates, and steps that end where several of the teacher's do."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slf_common.errors import UserError
from slf_jax.cascade.distillation import Teacher, add_parameters, draw_scales, invert_ddim
from slf_jax.cascade.images import to_float
from slf_jax.cascade.settings import sample_settings
from slf_jax.cascade.sizes import STAGES
from slf_jax.cascade.stage import Items
from slf_jax.cascade.system import build_system, person_noise
from slf_jax.diffusion import flow, noise, samplers
from slf_jax.diffusion.denoiser import expand

pytestmark = pytest.mark.slow

GROUPS = (("mel",), ("age", "gender"))
PLAIN = {"x0_threshold": "none", "thumbnail_consistency": False, "init_noise_scale": 1.0}


@pytest.fixture(scope="module")
def student(config, system):
    distilled = config.copy_and_resolve_references()
    distilled.distill.update(max_scale=8.0, groups=("mel", "age+gender"))
    return build_system(distilled, system.layout, system.statistics)


@pytest.fixture(scope="module")
def student_params(student, params):
    return {
        name: add_parameters(params[name], jax.jit(stage.init)(jax.random.key(0)))
        for name, stage in student.stages.items()
    }


@pytest.fixture(scope="module")
def items(system, batch):
    """Items of the base stage without noise on the thumbnail; conditions of two of the six are unknown."""
    stage, faces = system.stages["base"], to_float(batch["face"])
    matrix, mask = system.features(system.mask_unused_inputs(batch))
    mask = mask & (jnp.arange(6) > 1)[:, None]
    low = stage.lowres_cond(features_low(faces), jnp.array([1.0, 0, 1, 1, 1, 1]), jnp.zeros(6))
    shape = (6, stage.size, stage.size, 3)
    data, unit = jax.random.normal(jax.random.key(1), (2, *shape))
    quantile = jnp.array([0.02, 0.2, 0.4, 0.6, 0.8, 0.98])
    return Items(quantile, data, unit, low, low, faces, matrix, mask, jax.random.split(jax.random.key(2), 6))


def features_low(faces):
    return faces.reshape(6, 8, 16, 8, 16, 3).mean((2, 4))


def teacher_of(system, params, config, substeps=1, groups=(), **settings):
    changed = dataclasses.replace(sample_settings(config), **{**PLAIN, **settings})
    return Teacher(system, params, changed, groups, 8.0, substeps)


def test_a_student_starts_as_plain_conditional_sampling(system, params, student, student_params, items):
    sigma, scales = jnp.full(6, 0.7), jnp.array([[0.0, 0], [1, 1], [8, 8], [0, 3], [2, 0], [5, 1]])

    def estimate(stage, params, scales):
        cond = stage.condition(params, items.matrix, items.mask)
        return stage.denoiser(params, items.lowres, scales=scales)(items.data, sigma, cond)

    expected = jax.jit(lambda p: estimate(system.stages["base"], p, None))(params["base"])
    found = jax.jit(lambda p: estimate(student.stages["base"], p, scales))(student_params["base"])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_student_takes_the_scales_and_half_the_work(config, system, params, student, student_params, batch):
    """Scales change its faces once its layers for them are not zero; conditions are encoded once, without guidance."""
    settings, scales = sample_settings(config), jnp.array([[0.0, 0.0], [4.0, 4.0]])
    moved = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf + 0.3 if "scale" in jax.tree_util.keystr(path) and leaf.ndim == 2 else leaf,
        student_params,
    )

    def lower(system, params):
        clips, keys = system.mask_unused_inputs(batch), person_noise(0, jnp.arange(6))
        low = features_low(to_float(batch["face"]))
        run = lambda p: system.sample(p, clips, low, jnp.ones(6), keys, scales, settings, ("base",))  # noqa: E731
        return jax.jit(run).lower(params)

    teacher, lowered = lower(system, params), lower(student, moved)
    assert lowered.cost_analysis()["flops"] < 0.7 * teacher.cost_analysis()["flops"]
    images = np.asarray(lowered.compile()(moved))
    assert np.isfinite(images).all() and np.abs(images[0] - images[1]).mean() > 0.01


def test_the_target_is_the_guided_estimate(config, system, params, items):
    """Within the interval that of each group's scale, outside it the conditional one; each item has its own sigma."""
    intervals = {"guidance_interval": ((0.5, 3.0), ())}
    teacher = teacher_of(system, params, config, groups=GROUPS, **intervals)
    task = jax.jit(lambda p: teacher.task("base", p, items))(params["base"])
    stage, own = system.stages["base"], params["base"]
    sigma = np.asarray(stage.sigmas(items.quantile))
    np.testing.assert_allclose(task.sigma, sigma, rtol=1e-6)
    np.testing.assert_allclose(task.x, items.data + sigma[:, None, None, None] * items.unit, rtol=1e-5, atol=1e-5)
    inside = (sigma > 0.5) & (sigma <= 3.0)
    assert 0 < inside.sum() < 6

    @jax.jit
    def estimates(params):
        conds = system.conditions("base", params, items.matrix, items.mask, GROUPS)
        return [stage.denoiser(params, items.lowres)(task.x, task.sigma, cond) for cond in conds]

    none, voice, both = (np.asarray(each) for each in estimates(own))
    scale = np.asarray(task.scales)[:, :, None, None, None]
    assert (scale > 0).all(1).any()
    guided = none + scale[:, 0] * (voice - none) + scale[:, 1] * (both - voice)
    used = scale > 0
    plain = none + used[:, 0] * (voice - none) + used[:, 1] * (both - voice)
    expected = np.where(inside[:, None, None, None], guided, plain)
    np.testing.assert_allclose(task.target, expected, rtol=1e-3, atol=1e-3)


def test_one_step_of_the_target_ends_where_two_of_the_teacher_do(config, system, params, items):
    """At the student's noise levels, which are every second one of the teacher's; the last step ends at 0."""
    teacher = teacher_of(system, params, config, substeps=2, steps=4, sampler="ddim")
    task = jax.jit(lambda p: teacher.task("base", p, items))(params["base"])
    stage, levels = system.stages["base"], teacher.settings.sigmas(system.stages["base"].sigmas)
    first = [0, 0, 0, 2, 2, 2]
    np.testing.assert_allclose(task.sigma, levels[first], rtol=1e-6)

    @jax.jit
    def two_steps(params):
        none, cond = system.conditions("base", params, items.matrix, items.mask, ())
        denoise, x = stage.denoiser(params, items.lowres), task.x
        for step in range(2):
            sigma, following = (jnp.asarray(levels[np.array(first) + step + i]) for i in range(2))
            uncond = denoise(x, sigma, none)
            x0 = uncond + task.scales[:, :1, None, None] * (denoise(x, sigma, cond) - uncond)
            x = x0 + (following / sigma)[:, None, None, None] * (x - x0)
        return x

    ratio = (levels[np.array(first) + 2] / levels[first])[:, None, None, None]
    found = task.target + ratio * (task.x - task.target)
    np.testing.assert_allclose(found, two_steps(params["base"]), rtol=1e-3, atol=2e-3)


def test_a_student_of_a_flow_learns_its_guided_mean_and_its_way(config, system, params, items):
    """Half of the items give the mean, the others start from it; one step of the student is two of the teacher."""
    changed = config.copy_and_resolve_references()
    for name in STAGES:
        changed.diffusion[name].update(preconditioning="flow", weight="snr", max_weight=100.0)
    flows = build_system(changed, system.layout, system.statistics)
    within = {"guidance_interval": ((1.5, 2.5), ()), "init_noise_scale": 0.5}
    stage = flows.stages["base"]

    for substeps in (1, 2):
        teacher = teacher_of(flows, params, config, substeps=substeps, steps=4, sampler="ddim", **within)
        task = jax.jit(lambda p, teacher=teacher: teacher.task("base", p, items))(params["base"])
        of_mean = np.asarray(task.sigma) == flow.MEAN_LEVEL
        assert 0 < of_mean.sum() < 6 and not np.asarray(task.x)[of_mean].any()

        @jax.jit
        def expected(params, task=task, substeps=substeps):
            none, cond = flows.conditions("base", params, items.matrix, items.mask, ())
            denoise, scale = stage.denoiser(params, items.lowres), task.scales[:, :1, None, None]
            level = jnp.full(6, flow.MEAN_LEVEL)
            uncond, own = (denoise(jnp.zeros_like(items.data), level, each) for each in (none, cond))
            mean, s = uncond + scale * (own - uncond), task.sigma
            x = items.data + expand(s, own) * (mean + stage.flow_noise * 0.5 * items.unit - items.data)
            z = x
            for _ in range(substeps):
                x0 = jnp.where(scale > 0, denoise(z, s, cond), denoise(z, s, none))
                following = jnp.maximum(s - 0.25, 0) if substeps > 1 else jnp.zeros_like(s)
                z, s = x0 + expand(following / s, z) * (z - x0), following
            return mean, x, z

        mean, x, end = map(np.asarray, expected(params["base"]))
        np.testing.assert_allclose(np.asarray(task.target)[of_mean], mean[of_mean], atol=2e-3)
        np.testing.assert_allclose(np.asarray(task.x)[~of_mean], x[~of_mean], atol=2e-3)
        if substeps == 2:
            assert set(np.asarray(task.sigma)[~of_mean].tolist()) <= {1.0, 0.5}
        ratio = np.maximum(np.asarray(task.sigma) - 0.5, 0) / np.asarray(task.sigma) if substeps == 2 else np.zeros(6)
        ratio = ratio[:, None, None, None]
        found = task.target + ratio * (task.x - task.target)
        np.testing.assert_allclose(found[~of_mean], end[~of_mean], atol=2e-3)


def test_a_student_of_linear_steps_is_exact():
    """For Gaussian data, the inverted estimate is a denoiser with which half of DDIM's steps give the same result."""
    mean, std, sigmas = 0.3, 0.6, noise.karras_sigmas(6, 0.05, 20.0)
    x = sigmas[0] * jax.random.normal(jax.random.key(0), (3, 4, 4, 3))
    keys = jax.random.split(jax.random.key(1), 3)

    def teacher(x, sigma):
        return mean + std**2 / (std**2 + sigma[:, None, None, None] ** 2) * (x - mean)

    def student(x, sigma):
        i = jnp.argmin(jnp.abs(jnp.asarray(sigmas) - sigma[0]))
        three = jax.lax.dynamic_slice(jnp.asarray(sigmas), (i,), (3,))
        return invert_ddim(x, samplers.ddim(teacher, x, three, keys), three[0], three[2])

    expected = samplers.ddim(teacher, x, sigmas, keys)
    np.testing.assert_allclose(samplers.ddim(student, x, sigmas[::2], keys), expected, rtol=1e-4, atol=1e-4)


def test_noise_levels_of_a_stride_are_those_of_more_steps(config, system):
    settings, training = sample_settings(config), system.stages["base"].sigmas
    for schedule in noise.SCHEDULES:
        fine = dataclasses.replace(settings, sigma_schedule=schedule, steps=8).sigmas(training)
        coarse = dataclasses.replace(settings, sigma_schedule=schedule, steps=2, sigma_stride=4).sigmas(training)
        np.testing.assert_array_equal(coarse, fine[::4])


def test_scales_cover_their_range():
    scales = np.asarray(draw_scales(jax.random.split(jax.random.key(0), 4000), 2, 8.0))
    assert scales.shape == (4000, 2) and scales.min() == 0 and 7.9 < scales.max() <= 8
    assert 0.08 < (scales == 0).mean() < 0.12 and 0.45 < (scales[:, 0] == scales[:, 1]).mean() < 0.55
    assert abs(scales[scales > 0].mean() - 4) < 0.15


def test_other_scales_and_groups_are_refused_in_one_line(student, system):
    student.check_scales([(0.0, 8.0)])
    student.check_scales([(8.0, 1.0)], GROUPS)
    student.without(["age"]).check_scales([(8.0, 1.0)], (("mel",), ("gender",)))
    system.check_scales([(80.0, 8.0)], (("mel",),))
    with pytest.raises(UserError, match="^--scales 9: this system was distilled for scales up to 8, not for 9$"):
        student.check_scales([(1.0, 9.0)], where="--scales 9: ")
    for groups in (GROUPS[::-1], GROUPS[:1]):
        with pytest.raises(
            UserError, match=r"other groups of inputs; give mel=\.\.\.,age\+gender=\.\.\., or one scale"
        ):
            student.check_scales([(1.0, 1.0)], groups)
    single = dataclasses.replace(student, groups=())
    with pytest.raises(UserError, match="other groups of inputs; give one scale for all"):
        single.check_scales([(1.0, 1.0)], GROUPS)
