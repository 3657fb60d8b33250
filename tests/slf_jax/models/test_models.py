import dataclasses

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from slf_common.errors import UserError
from slf_jax.models import blocks
from slf_jax.models.conditioning import Cond
from slf_jax.models.unet import UNet, UNetConfig

CONFIG = UNetConfig(
    patch=2, width=16, mults=(1, 2), blocks=(1, 2), self_attention=(False, True), cross_attention=(False, True),
    attention_blocks="all", head_width=8, attention="xla", cond_width=16, dropout=0.5, remat=False,
)  # fmt: skip
X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 16, 6)).astype(np.float32))
SIGMA, EXTRAS = jnp.array([-1.0, 0.5]), jnp.ones((2, 2))


def make_cond(config):
    rng = np.random.default_rng(1)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape).astype(np.float32))  # noqa: E731
    shapes = [(2, 5, width // config.head_width, config.head_width) for width in config.cross_widths]
    return Cond(draw(2, 16), draw(2, 32, 32, 3), tuple(draw(*s) for s in shapes), tuple(draw(*s) for s in shapes))


@pytest.fixture(scope="module")
def params():
    shapes = jax.eval_shape(UNet(CONFIG, jnp.float32).init, jax.random.key(0), X, SIGMA, EXTRAS, make_cond(CONFIG))
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda s: jnp.asarray(0.1 * rng.normal(size=s.shape).astype(np.float32)), shapes)


def apply(params, cond, config=CONFIG, dtype=jnp.float32, **kwargs):
    run = jax.jit(lambda p, c: UNet(config, dtype).apply(p, X, SIGMA, EXTRAS, c, **kwargs))
    return np.asarray(run(params, cond))


@pytest.mark.parametrize(
    ("which", "blocks"), [("all", ["down1_0", "down1_1", "up1_0", "up1_1"]), ("last", ["down1_1", "up1_1"])]
)
def test_blocks_of_a_level_attend(which, blocks):
    config = dataclasses.replace(CONFIG, attention_blocks=which)
    assert config.cross_widths == (32,) * len(blocks)
    network = UNet(config, jnp.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), X, SIGMA, EXTRAS, make_cond(config))["params"]
    for layer in ("self", "cross"):
        assert [name for name, module in shapes.items() if isinstance(module, dict) and layer in module] == blocks


def test_every_condition_changes_only_its_own_image(params):
    cond = make_cond(CONFIG)
    out = apply(params, cond)
    assert out.shape == (2, 16, 16, 3) and out.dtype == np.float32
    for changed in (
        cond.replace(pooled=cond.pooled.at[1].add(1.0)),
        cond.replace(sketch=cond.sketch.at[1].add(1.0)),
        cond.replace(keys=tuple(k.at[1].multiply(-5.0) for k in cond.keys)),
        cond.replace(values=tuple(v.at[1].add(1.0) for v in cond.values)),
    ):
        found = apply(params, changed)
        np.testing.assert_allclose(found[0], out[0], atol=1e-5)
        assert np.abs(found[1] - out[1]).mean() > 1e-5


def test_dropout_is_active_only_in_training(params):
    cond = make_cond(CONFIG)
    np.testing.assert_array_equal(apply(params, cond), apply(params, cond))
    first, second = (apply(params, cond, train=True, rngs={"dropout": jax.random.key(seed)}) for seed in (0, 1))
    assert np.abs(first - second).mean() > 1e-4


def test_remat_changes_neither_outputs_nor_parameter_names(params):
    remat = dataclasses.replace(CONFIG, remat=True)
    np.testing.assert_allclose(apply(params, make_cond(CONFIG)), apply(params, make_cond(CONFIG), remat), atol=1e-5)


def test_bfloat16_compute_keeps_float32_output(params):
    full = apply(params, make_cond(CONFIG))
    low = apply(params, jax.tree.map(jnp.bfloat16, make_cond(CONFIG)), dtype=jnp.bfloat16)
    assert low.dtype == np.float32
    assert 0 < np.abs(low - full).mean() < 0.05 * np.abs(full).mean()


def test_fused_attention_falls_back_if_unavailable():
    """A checkpoint trained with cuDNN attention also works on a machine without a GPU."""
    with jax.default_device(jax.devices("cpu")[0]):
        q, k, v = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 4, 2, 8)), jnp.bfloat16)
        np.testing.assert_array_equal(blocks.attend(q, k, v, "cudnn"), blocks.attend(q, k, v, "xla"))


def test_attention_is_chosen_by_the_platform_that_a_program_is_lowered_for():
    """With cuDNN here, an export for CUDA uses it; without, it is refused instead of using XLA's attention."""
    q = jax.ShapeDtypeStruct((2, 4, 2, 8), jnp.bfloat16)
    loss = lambda q: blocks.attend(q, q, q, "cudnn").astype(jnp.float32).sum()  # noqa: E731
    lower = lambda *platforms: jax.export.export(jax.jit(jax.grad(loss)), platforms=platforms)(q).mlir_module()  # noqa: E731
    assert "fmha" not in lower("cpu", "tpu")
    if blocks.has_cudnn():
        assert "fmha" in lower("cuda")
        return
    for platforms in (("cuda",), ("cpu", "cuda")):
        with pytest.raises(
            UserError, match="attention='cudnn' cannot be compiled for CUDA on a machine where"
        ) as error:
            lower(*platforms)
        assert "\n" not in str(error.value)
