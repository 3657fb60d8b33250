import dataclasses

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from slf_common.config import load_config
from slf_common.errors import UserError
from slf_jax import features
from slf_jax.cascade.images import make_thumbnail, to_float, to_uint8, upsample
from slf_jax.cascade.settings import sample_settings
from slf_jax.cascade.sizes import STAGES
from slf_jax.cascade.stage import normal
from slf_jax.cascade.system import build_system, person_noise
from slf_jax.diffusion import guidance, noise, samplers
from slf_jax.models.blocks import depth_to_space, space_to_depth
from slf_jax.streams import stream
from tfrecords.schema import Schema


@pytest.fixture(scope="module")
def sample(system, params, config):
    """Samples people at two scales: sample(batch, scales, use_thumbnail=True, people=None) -> [2, B, 128, 128, 3]."""
    settings = sample_settings(config)
    assert settings.thumbnail_consistency

    @jax.jit
    def program(batch, people, scales, has_thumbnail):
        thumbnails = make_thumbnail(to_float(batch["face"]))
        has_thumbnail = jnp.full(len(thumbnails), has_thumbnail)
        pairs = jnp.stack([scales, scales], -1)
        return system.sample(params, batch, thumbnails, has_thumbnail, person_noise(0, people), pairs, settings)

    def run(batch, scales, use_thumbnail=True, people=None):
        people = jnp.arange(len(batch["face"])) if people is None else people
        return np.asarray(program(batch, people, jnp.array(scales, jnp.float32), float(use_thumbnail)))

    return run


def other_conditions(batch):
    return {key: value if key == "face" else np.roll(value, 1, 0) for key, value in batch.items()}


def test_space_to_depth_and_back():
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    np.testing.assert_array_equal(depth_to_space(space_to_depth(x, 4), 4), x)
    np.testing.assert_array_equal(space_to_depth(x, 4)[0, 1, 0], x[0, 4:8, 0:4].reshape(-1))


def test_only_scale_zero_ignores_the_conditions(sample, batch):
    own, other = sample(batch, [0, 1]), sample(other_conditions(batch), [0, 1])
    np.testing.assert_array_equal(own[0], other[0])
    assert np.abs(own[1] - other[1]).mean() > 1e-3


def test_scale_zero_still_follows_the_thumbnail(sample, batch):
    faces = {**batch, "face": np.roll(batch["face"], 1, 0)}
    assert np.abs(sample(batch, [0, 1])[0] - sample(faces, [0, 1])[0]).mean() > 1e-2


def test_scale_one_is_plain_conditional_sampling(system, params, config, batch, sample):
    """Equals sampling by hand with the conditional denoiser only, its estimate clipped and matched to the thumbnail."""
    settings = sample_settings(config)
    sigmas = noise.karras_sigmas(settings.steps, settings.sigma_min, settings.sigma_max, settings.rho)
    matrix, mask = system.features(batch)
    image = thumbnails = make_thumbnail(to_float(batch["face"]))
    count, drawn = len(image), person_noise(0, jnp.arange(len(image)))
    for name in STAGES:
        stage = system.stages[name]
        lowres = stage.lowres_cond(image, jnp.ones(count), jnp.zeros(count))
        cond, denoise = stage.condition(params[name], matrix, mask), stage.denoiser(params[name], lowres)

        def estimate(x, sigma, stage=stage, lowres=lowres, cond=cond, denoise=denoise):
            clipped = jnp.clip(lowres.image + stage.sigma_data * denoise(x, sigma, cond), -1, 1)
            return (guidance.match_average(clipped, thumbnails) - lowres.image) / stage.sigma_data

        x = sigmas[0] * settings.init_noise_scale * drawn[name].first
        data = samplers.SAMPLERS[settings.sampler](estimate, x, sigmas, drawn[name].keys)
        image = guidance.match_average_in_range(lowres.image + stage.sigma_data * data, thumbnails)
    np.testing.assert_allclose(sample(batch, [0.0, 1.0])[1], image, atol=2e-3)


def test_cached_conditions_equal_conditions_computed_each_step(system, params, batch):
    stage, p = system.stages["base"], params["base"]
    matrix, mask = system.features(batch)
    thumbnails = make_thumbnail(to_float(batch["face"]))
    lowres = stage.lowres_cond(thumbnails, jnp.ones(6), jnp.zeros(6))
    x, sigmas = jax.random.normal(jax.random.key(0), (6, 32, 32, 3)), noise.karras_sigmas(3, 0.2, 5.0)
    cached = stage.condition(p, matrix, mask)
    denoise = stage.denoiser(p, lowres)
    keys = jax.random.split(jax.random.key(1), 6)
    once = samplers.heun(lambda x, s: denoise(x, s, cached), x, sigmas, keys)
    each = samplers.heun(lambda x, s: denoise(x, s, stage.condition(p, matrix, mask)), x, sigmas, keys)
    np.testing.assert_allclose(once, each, atol=1e-5)


def matmul_flops(jaxpr):
    """Multiply-adds of the matrix products and convolutions of a program, counted for every iteration of a loop."""
    total = 0
    for eqn in jaxpr.eqns:
        times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
        total += times * sum(matmul_flops(inner) for inner in jax.extend.core.jaxprs_in_params(eqn.params))
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            depth = np.prod([eqn.invars[0].aval.shape[axis] for axis in contracted])
            total += int(depth * eqn.outvars[0].aval.size)
        elif eqn.primitive.name == "conv_general_dilated":
            kernel, out = eqn.invars[1].aval, eqn.outvars[0].aval
            total += kernel.size // out.shape[-1] * out.size
    return total


def test_cost_of_conditioning_does_not_grow_with_steps(system, params, config, batch):
    count, stage = len(batch["face"]), system.stages["base"]
    noises, scales = person_noise(0, jnp.arange(count)), jnp.ones((1, 2))
    faces = to_float(batch["face"])

    def sampling(steps):
        settings = dataclasses.replace(sample_settings(config), steps=steps)

        def base(p):
            return system.sample(
                {"base": p}, batch, make_thumbnail(faces), jnp.ones(count), noises, scales, settings, ("base",)
            )

        return jax.make_jaxpr(base)(params["base"]).jaxpr

    matrix, mask = system.features(batch)
    conditioning, evaluation = (
        matmul_flops(jax.make_jaxpr(function)(params["base"]).jaxpr)
        for function in (
            lambda p: stage.condition(p, matrix, mask),
            lambda p: stage.denoiser(p, stage.lowres_cond(make_thumbnail(faces), jnp.ones(count), jnp.zeros(count)))(
                noises["base"].first, jnp.ones(count), stage.condition(p, matrix, mask)
            ),
        )
    )
    three, six, twelve = (matmul_flops(sampling(steps)) for steps in (3, 6, 12))
    assert twelve - six == 2 * (six - three) > 0
    # A step is exactly two evaluations, one with and one without the conditions.
    upsampling = matmul_flops(jax.make_jaxpr(lambda x: upsample(x, 32))(make_thumbnail(faces)).jaxpr)
    assert six - three == 3 * 2 * (evaluation - conditioning - upsampling)


def test_shared_conditions_equal_repeated_ones(system, params, batch):
    """The null branch is computed once; all people share its keys."""
    stage, p = system.stages["base"], params["base"]
    matrix, mask = system.features(batch)
    one, six = (stage.condition(p, 0 * matrix[:n], 0 * mask[:n] > 0) for n in (1, 6))
    lowres = stage.lowres_cond(make_thumbnail(to_float(batch["face"])), jnp.ones(6), jnp.zeros(6))
    x = jax.random.normal(jax.random.key(0), (6, 32, 32, 3))
    denoise = stage.denoiser(p, lowres)
    np.testing.assert_allclose(denoise(x, jnp.ones(6), one), denoise(x, jnp.ones(6), six), atol=1e-5)


def test_masked_rows_do_not_affect_the_conditions(system, params, batch):
    matrix, mask = system.features(batch)
    block = system.layout["mel"]
    mask = np.asarray(mask).copy()
    mask[:, block.start : block.stop] = False
    changed = np.asarray(matrix).copy()
    changed[:, block.start : block.stop] += 1
    stage = system.stages["base"]
    for a, b in zip(
        jax.tree.leaves(stage.condition(params["base"], matrix, mask)),
        jax.tree.leaves(stage.condition(params["base"], changed, mask)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_people_and_scales_are_independent(sample, batch):
    order = np.array([4, 1, 0, 5, 3, 2])
    moved = {key: value[order] for key, value in batch.items()}
    found = sample(moved, [4, 1], people=jnp.array(order))
    np.testing.assert_allclose(found, sample(batch, [1, 4])[::-1, order], atol=1e-3)


def test_noise_is_fixed_per_person():
    five, one = person_noise(3, jnp.arange(5)), person_noise(3, jnp.array([4]))
    for name in STAGES:
        np.testing.assert_allclose(five[name].first[4], one[name].first[0], atol=1e-5)
        assert five[name].keys[4] == one[name].keys[0] != five[name].keys[3]
        assert not np.array_equal(five[name].first[4], five[name].first[3])


def test_thumbnail_has_no_effect_if_it_is_not_used(sample, batch):
    faces = {**batch, "face": np.roll(batch["face"], 1, 0)}
    np.testing.assert_array_equal(
        sample(batch, [0, 1], use_thumbnail=False), sample(faces, [0, 1], use_thumbnail=False)
    )
    others = sample(other_conditions(batch), [0, 1], use_thumbnail=False)
    assert np.abs(sample(batch, [0, 1], use_thumbnail=False)[1] - others[1]).mean() > 1e-3


def test_thumbnail_consistency_makes_the_thumbnail_exact(sample, batch):
    thumbnails = make_thumbnail(to_float(batch["face"]))
    for image in sample(batch, [0, 4]):
        assert np.abs(make_thumbnail(image) - thumbnails).max() < 1e-4
        rounded = to_float(to_uint8(image))
        assert np.abs(make_thumbnail(rounded) - thumbnails).max() < 1 / 127.5


@pytest.mark.parametrize("name", STAGES)
def test_thumbnail_dropout_changes_the_loss_only_in_the_base_stage(system, params, batch, name):
    stage, keys = system.stages[name], jax.random.split(jax.random.key(0), 6)
    matrix, mask = system.features(batch)
    faces = to_float(batch["face"])
    losses = [
        stage.loss(params[name], faces, matrix, mask, keys, jnp.arange(6), 6, thumbnail_drop=drop)[0]
        for drop in (0.0, 1.0)
    ]
    assert np.isfinite(losses).all()
    assert np.array_equal(*losses) == (name == "upsampler")


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("model.base.mults", (1, 2, 3), "one entry per level"),
        ("model.base.head_width", 7, "multiple of head_width=7"),
        ("data.inputs", ("mel", "melody"), "unknown constituent 'melody'"),
        ("model.supported_inputs", ("mel", "gender"), "'age', which is missing from config.model.supported_inputs"),
        ("diffusion.base.preconditioning", "x1", "edm, v, eps, x0, flow"),
        ("diffusion.base.sigma_distribution", "normal", "lognormal, cosine, linear"),
        ("diffusion.upsampler.weight", "p2", "weight='p2': must be one of: edm, snr"),
        ("sample.sampler", "euler", "ancestral, ddim, heun, dpmpp_2m"),
        ("sample.sigma_schedule", "even", "karras, training"),
        ("sample.x0_threshold", "soft", "static, dynamic, none"),
        ("sample.sigma_min", 50.0, "must be below config.sample.sigma_max=20"),
        ("sample.churn", 40.0, "only heun"),
        ("sample.guidance", "cfg++", "must be one of: cfg, rescaled, apg, cfgpp; did you mean"),
        ("sample.guidance_interval.base", (3.0, 1.0), "low and high"),
        ("sample.guidance_interval.upsampler", ("low", "high"), "low and high"),
        ("sample.dynamic_threshold_percentile", 0.0, "above 0"),
        ("sample.steps", 0, "steps=0: must be a whole number from 1"),
    ],
)
def test_invalid_settings_are_rejected(config, system, key, value, message):
    changed = config.copy_and_resolve_references()
    changed.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=message):
        build_system(changed, system.layout, system.statistics)
        sample_settings(changed)


def test_systems_with_different_inputs_share_one_program(config, system, params, batch):
    def build(*inputs):
        changed = config.copy_and_resolve_references()
        changed.model.supported_inputs, changed.data.inputs = config.data.inputs, inputs
        return build_system(changed, system.layout, system.statistics)

    def compiled(system, records):
        return jax.jit(lambda p, b: system.stages["base"].condition(p, *system.features(b))).lower(
            params["base"], system.mask_unused_inputs(records)
        )

    full, no_audio, other = build("mel", "age", "gender"), build("age", "gender"), {**batch, "mel": batch["mel"][::-1]}
    assert compiled(full, batch).as_text() == compiled(no_audio, batch).as_text()
    conds = [compiled(each, batch).compile()(params["base"], each.mask_unused_inputs(records)).pooled
             for each in (full, no_audio) for records in (batch, other)]  # fmt: skip
    assert np.abs(conds[0] - conds[1]).max() > 1e-2
    np.testing.assert_array_equal(conds[2], conds[3])


@pytest.mark.slow
def test_the_papers_settings_train_and_sample(config, system, params, batch):
    """Noise prediction, cosine and linear schedules, min-SNR, ancestral steps, dynamic thresholds: all are settings."""
    paper = load_config("configs/paper.py")
    paper.model, paper.data.inputs, paper.sample.steps = config.model, config.data.inputs, 3
    rebuilt = build_system(paper, system.layout, system.statistics)
    keys, faces = jax.random.split(jax.random.key(0), 6), to_float(batch["face"])
    for name, stage in rebuilt.stages.items():

        def loss(p, stage=stage):
            return stage.loss(p, faces, *rebuilt.features(batch), keys, jnp.arange(6), 6, thumbnail_drop=0.0)[0].mean()

        mean, grads = jax.jit(jax.value_and_grad(loss))(params[name])
        assert np.isfinite(mean) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    images = jax.jit(rebuilt.sample, static_argnames="settings")(
        params, {k: v for k, v in batch.items() if k != "face"}, make_thumbnail(faces), jnp.ones(6),
        person_noise(0, jnp.arange(6)), jnp.ones((2, 2)), settings=sample_settings(paper),
    )  # fmt: skip
    assert images.shape == (2, 6, 128, 128, 3) and np.isfinite(images).all()


@pytest.mark.parametrize(
    "path, base, upsampler",
    [
        ("configs/demo.py", (1.5, 3), (1.5, 3)),
        ("configs/base.py", (50, 100), (50, 100)),
        # The U-Nets of the original have 604 M and 493 M parameters.
        ("configs/paper.py", (450, 720), (400, 620)),
    ],
)
def test_presets_have_the_expected_number_of_parameters(path, base, upsampler):
    system = build_system(load_config(path), features.make_layout(Schema(())), {})
    for name, (low, high) in (("base", base), ("upsampler", upsampler)):
        shapes = jax.eval_shape(system.stages[name].init, jax.random.key(0))
        assert low < sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6 < high


def shapes(jaxpr):
    """The shapes of all values that a program computes."""
    for eqn in jaxpr.eqns:
        yield from (out.aval.shape for out in eqn.outvars)
        for inner in jax.extend.core.jaxprs_in_params(eqn.params):
            yield from shapes(inner)


@pytest.fixture(scope="module")
def sweep(system, params, config, batch):
    """Sweeps the base stage: sweep(batch, scales, interval, kind="cfg") -> images [S, 6, 32, 32, 3]."""
    noises, stages = person_noise(0, jnp.arange(6)), ("base",)

    def run(batch, scales, interval, kind="cfg"):
        settings = dataclasses.replace(sample_settings(config), guidance=kind, guidance_interval=(interval, ()))
        thumbnails, pairs = make_thumbnail(to_float(batch["face"])), jnp.stack([scales, scales], -1)
        return system.sample({"base": params["base"]}, batch, thumbnails, jnp.ones(6), noises, pairs, settings, stages)

    return run


@pytest.mark.parametrize("interval", [(), (0.5, 5.0)])
def test_keys_and_values_are_not_copied_for_each_scale(sweep, system, params, batch, interval):
    """With a guidance interval each was copied to [S, B, N, heads, head_width] (fault 23)."""
    cond = system.stages["base"].condition(params["base"], *system.features(batch))
    found = set(shapes(jax.make_jaxpr(lambda s: sweep(batch, s, interval))(jnp.array([0.0, 1.0, 2.0, 3.0, 4.0])).jaxpr))
    assert cond.keys and all(key.shape in found for key in cond.keys)
    assert not found & {(5, *each.shape) for each in (*cond.keys, *cond.values)}


def test_scale_zero_ignores_the_conditions_with_a_guidance_interval(sweep, batch):
    """With other scales and alone; images at other scales do not depend on whether 0 is one of them (fault 23)."""
    run = jax.jit(lambda batch, scales: sweep(batch, scales, (0.5, 5.0)))
    pair = jnp.array([0.0, 1.0])
    own, other = (np.asarray(run(each, pair)) for each in (batch, other_conditions(batch)))
    np.testing.assert_array_equal(own[0], other[0])
    assert np.abs(own[1] - other[1]).mean() > 1e-3
    ones = np.asarray(run(batch, jnp.ones(2)))
    np.testing.assert_allclose(ones[0], own[1], atol=1e-5)
    np.testing.assert_allclose(np.asarray(run(batch, jnp.zeros(2)))[1], own[0], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["apg", "cfgpp"])
def test_kinds_of_guidance_equal_cfg_at_scales_0_and_1(sweep, batch, kind):
    """With an interval, where the branches of the program must agree on memory and on the second estimate."""
    scales = jnp.array([0.0, 1.0, 6.0])
    cfg, found = (
        np.asarray(jax.jit(lambda batch, kind=kind: sweep(batch, scales, (0.5, 10.0), kind))(batch))
        for kind in ("cfg", kind)
    )
    np.testing.assert_allclose(found[:2], cfg[:2], atol=1e-3)
    assert np.isfinite(found).all() and np.abs(found[2] - cfg[2]).mean() > 1e-3
    np.testing.assert_allclose(make_thumbnail(found[2]), make_thumbnail(to_float(batch["face"])), atol=1e-4)


def test_noise_on_the_low_resolution_image(system, batch):
    """At level 0 nothing changes, bitwise; otherwise the image is that of training (Ho et al. 2022)."""
    stage, images = system.stages["upsampler"], guidance.area_average(to_float(batch["face"]), 32)
    keys, ones = jax.random.split(jax.random.key(0), 6), jnp.ones(6)
    clean = stage.lowres_cond(images, ones, jnp.zeros(6))
    for before, after in zip(jax.tree.leaves(clean), jax.tree.leaves(stage.augment(clean, 0.0, keys)), strict=True):
        np.testing.assert_array_equal(before, after)
    added = normal(stream(keys, "low noise"), (32, 32, 3))
    trained = stage.lowres_cond(images + 0.2 * added, ones, 0.2 * ones)
    for wanted, found in zip(jax.tree.leaves(trained), jax.tree.leaves(stage.augment(clean, 0.2, keys)), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)
