"""Every command checks all settings when it reads a config, with one-line errors."""

import jax
import ml_collections
import numpy as np
import pytest
from records import make_clip

from slf_common.config import load_config
from slf_common.errors import UserError
from slf_common.rules import find_leaves, find_rule
from slf_jax import features, train
from slf_jax.cascade.settings import PER_LEVEL, sample_settings
from slf_jax.cascade.system import build_system
from slf_jax.evaluation.ablation import ablate
from slf_jax.evaluation.settings import RULES, check_config
from slf_jax.models.blocks import group_norm
from slf_jax.training import loop, settings
from slf_jax.training.run import prepare
from tfrecords import writer
from tfrecords.schema import Constituent, Schema

SHIPPED = (
    "configs/base.py",
    "configs/demo.py",
    "configs/demo.py:diffusion",
    "configs/demo.py:flow",
    "configs/paper.py",
    "configs/ablations.py",
    "configs/ablations.py:demo",
)
NAN, INF = float("nan"), float("inf")
FLOW = {"diffusion.base.preconditioning": "flow"}


@pytest.fixture(scope="module")
def demo():
    return load_config("configs/ablations.py:demo")


def changed(config, values):
    """A copy of the config with other values of any type, as a config file could set them."""
    config = ml_collections.ConfigDict(config.to_dict())
    for key, value in values.items():
        *parents, leaf = key.split(".")
        node = config
        for part in parents:
            node = node[part]
        if leaf in node:
            del node[leaf]
        node[leaf] = value
    return config


@pytest.mark.parametrize("path", SHIPPED)
def test_every_shipped_setting_has_a_rule_and_passes_unchanged(path):
    """The shipped configs are valid, and every key is checked (fault 16)."""
    config = load_config(path)
    without = [key for key, _ in find_leaves(config) if not key.startswith("extract.") and not find_rule(RULES, key)]
    assert not without
    before = config.to_json(sort_keys=True)
    (check_config if "ablations" in config else settings.check_config)(config)
    assert config.to_json(sort_keys=True) == before


BAD = [
    ("train.log_every", -1),
    ("train.validate_every", 2.5),
    ("train.preview_every", (300, 300)),
    ("train.checkpoint_every", "never"),
    ("train.base.steps", -5),
    ("train.base.steps", 2.5),
    ("train.upsampler.steps", "100"),
    ("train.base.steps", True),
    ("train.base.steps", (600, 900)),
    ("train.base.steps", 10**12),
    ("train.base.learning_rate", -1),
    ("train.upsampler.learning_rate", 0.0),
    ("train.base.learning_rate", "fast"),
    ("train.base.batch_size", (16, 8, 4)),
    ("train.upsampler.batch_size", 0),
    ("train.base.accumulate", 0),
    ("train.steps_per_dispatch", 0),
    ("train.warmup_steps", -1),
    ("train.warmup_steps", (100, 200)),
    ("train.final_lr_fraction", 1.5),
    ("train.weight_decay", -0.1),
    ("train.grad_clip_norm", 0),
    ("train.grad_clip_norm", INF),
    ("train.ema_decay", NAN),
    ("train.ema_decay", 1.0),
    ("train.cond_drop", 1.1),
    ("train.thumbnail_drop", -0.1),
    ("train.constituent_drop.mel", 1.5),
    ("train.constituent_drop.mel", "often"),
    ("train.flip", 1),
    ("train.max_to_keep", 0),
    ("train.keep_best", -1),
    ("train.skip_spikes", 0.5),
    ("train.skip_spikes", NAN),
    ("seed", -1),
    ("seed", 2**31),
    ("stage", "third"),
    ("parallel", "threads"),
    ("workdir", ""),
    ("workdir", 5),
    ("profile_steps", -1),
    ("num_processes", -1),
    ("process_id", -2),
    ("coordinator", "10.0.0.1"),
    ("distributed", "yes"),
    ("data.threads", 0),
    ("data.inputs", "mel"),
    ("data.inputs", ("mel", "mel")),
    ("data.dir", None),
    ("model.dtype", "bf16"),
    ("model.dtype", "float64"),
    ("model.base.patch", 0),
    ("model.base.width", 2.5),
    ("model.base.mults", ()),
    ("model.base.mults", (1.5,)),
    ("model.base.blocks", (0,)),
    ("model.base.self_attention", (1,)),
    ("model.base.attention", "flash"),
    ("model.base.cond_width", 0),
    ("model.upsampler.dropout", 1),
    ("model.upsampler.dropout", -0.1),
    ("model.upsampler.remat", None),
    ("diffusion.base.preconditioning", "x1"),
    ("diffusion.base.sigma_distribution", "normal"),
    ("diffusion.base.p_mean", NAN),
    ("diffusion.base.p_std", 0),
    ("diffusion.base.weight", "p2"),
    ("diffusion.base.max_weight", 0),
    ("diffusion.upsampler.sigma_data", 0),
    ("diffusion.upsampler.sigma_data_no_lowres", 1e-45),
    ("diffusion.upsampler.lowres_aug_max", -0.1),
    ("diffusion.upsampler.flow_noise", -0.1),
    ("distill.max_scale", 2.0),
    ("distill.groups", ("mel", "mel")),
    ("distill.substeps", 0),
    ("sample.sampler", "euler"),
    ("sample.steps", 0),
    ("sample.sigma_schedule", "even"),
    ("sample.sigma_min", 0),
    ("sample.sigma_max", 1e30),
    ("sample.rho", 0),
    ("sample.rho", 0.5),
    ("sample.churn", -1),
    ("sample.sigma_stride", 0),
    ("sample.init_noise_scale", NAN),
    ("sample.guidance", "apgg"),
    ("sample.rescaled_phi", 1.1),
    ("sample.apg_eta", -0.1),
    ("sample.apg_r", -1),
    ("sample.apg_beta", -1),
    ("sample.cfgpp_renoise", NAN),
    ("sample.lowres_aug", -0.1),
    ("sample.guidance_interval.base", (3.0, 1.0)),
    ("sample.guidance_interval.base", (1.0,)),
    ("sample.guidance_interval.upsampler", ("low", "high")),
    ("sample.x0_threshold", "soft"),
    ("sample.dynamic_threshold_percentile", 0),
    ("ablations.scales", (0, NAN)),
    ("ablations.scales", (0, 2, 2.0)),
    ("ablations.scales", ()),
    ("ablations.modes", ("trian",)),
    ("ablations.modes", ()),
    ("ablations.any_subset_steps.base", -1),
    ("ablations.people", -1),
    ("ablations.samples", 0),
    ("ablations.chunk", 0),
    ("ablations.embedder", "eigenface"),
    ("ablations.metric", "l1"),
    ("ablations.systems.no audio.thumbnail", "yes"),
    ("ablations.systems.no audio.inputs", "age"),
]


@pytest.mark.parametrize("key, value", BAD, ids=[f"{key}={value!r}" for key, value in BAD])
def test_invalid_value_is_reported_in_one_line(demo, key, value):
    """Invalid values ended in a traceback, or in silence (fault 16)."""
    with pytest.raises(UserError) as error:
        check_config(changed(demo, {key: value}))
    message = str(error.value)
    assert message.startswith(f"config.{key}={value!r}: must be ") and "\n" not in message


@pytest.mark.parametrize(
    "values, message",
    [
        ({"model.dtype": "bf16"}, r"one of: auto, float32, bfloat16; did you mean 'bfloat16'\?"),
        ({"model.base.mults": (1, 2)}, r"config.model.base: .* one entry per level; mults has 2, blocks has 1"),
        ({"model.base.patch": 3}, "base.patch=3: must divide the image side of 32"),
        (
            {f"model.base.{key}": (value,) * 7 for key, value in zip(PER_LEVEL, (1, 1, False, False), strict=True)},
            "patch=4: must divide the image side of 32, .* patch x 64 with 7 levels",
        ),
        ({"model.base.head_width": 7}, "base.width=128: must be a multiple of head_width=7"),
        ({"model.base.width": 56, "model.base.head_width": 8}, "width=56: level 0 has 56 channels, which its 3 norm"),
        ({"model.base.attention": "cudnn", "model.base.head_width": 4}, "head_width=4: with attention='cudnn'"),
        ({"model.supported_inputs": ("mel",)}, "data.inputs: has 'pyaudioanalysis', which is missing from"),
        ({"sample.sigma_min": 50.0}, "sigma_min=50: must be below config.sample.sigma_max=20"),
        ({"sample.churn": 40.0}, "churn=40: must be 0 with config.sample.sampler='ddim'"),
        ({**FLOW, "sample.sampler": "ancestral"}, "sampler='ancestral': must not add noise, since .*base.*flow"),
        ({**FLOW, "sample.sampler": "heun", "sample.churn": 4.0}, "churn=4.0: must not add noise, .* without churn"),
        ({"sample.lowres_aug": 0.2}, "lowres_aug=0.2: must be at most 0.15, the most in training"),
        ({"train.steps_per_dispatch": 3}, "must be a multiple of config.train.steps_per_dispatch=3"),
        ({"train.base.accumulate": 3}, "batch_size=16: must be a multiple of config.train.base.accumulate=3"),
        ({"coordinator": "localhost:1234"}, "coordinator='localhost:1234': needs config.distributed=true"),
        ({"coordinator": "a:1", "distributed": True}, "config.process_id=-1: .*config.num_processes=0"),
        ({"ablations.systems.no audio.inputs": ("age", "ecapa")}, "'no audio' uses 'ecapa', config.data.inputs does"),
        ({"ablations.systems": {}}, "ablations.systems: must hold at least one system"),
        ({"train.flips": 5}, r"config.train.flips=5: no such setting; did you mean config.train.flip\?"),
        ({"trian": {"flip": 5}}, r"config.trian.flip=5: no such setting; did you mean config.train.flip\?"),
        ({"trian": {}}, "config.trian.*: no such setting"),
        ({"train": 5}, "config.train=5: must be a group of settings"),
        ({"train.constituent_drop": 0.1}, "config.train.constituent_drop=0.1: must be a group of settings"),
        ({"train.warmup_steps": {"base": 5}}, "warmup_steps.base=5: config.train.warmup_steps is no.* a whole"),
    ],
)  # fmt: skip
def test_conflicting_settings_are_reported_in_one_line(demo, values, message):
    """Conflicts between settings ended in a traceback, or in silence (fault 16)."""
    with pytest.raises(UserError, match=message) as error:
        check_config(changed(demo, values))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "key",
    [
        "seed",
        "train",
        "train.max_to_keep",
        "train.constituent_drop",
        "model.base.remat",
        "ablations.systems.no audio.thumbnail",
    ],
)
def test_missing_setting_is_named(demo, key):
    """Missing settings are found when the config is read (fault 16)."""
    config = changed(demo, {})
    *parents, leaf = key.split(".")
    node = config
    for part in parents:
        node = node[part]
    del node[leaf]
    with pytest.raises(UserError, match=rf"config\.{key}.*: missing from this config"):
        check_config(config)


def test_numbers_are_converted_to_their_type(demo):
    """`steps=1e5` was rejected (fault 16)."""
    values = {
        "train.base.steps": 1e5, "train.base.batch_size": 16.0, "train.base.learning_rate": 1,
        "train.warmup_steps": np.int64(7), "train.ema_decay": np.float32(0.5), "sample.guidance_interval.base": [0, 3],
        "train.constituent_drop.mel": 0, "train.log_every": 0, "train.skip_spikes": 0, "ablations.scales": (0, 2),
    }  # fmt: skip
    config = changed(demo, values)
    check_config(config)
    found = [repr(config.train.base[key]) for key in ("steps", "batch_size", "learning_rate")]
    found += [repr(config.train[key]) for key in ("warmup_steps", "ema_decay", "skip_spikes")]
    assert found == ["100000", "16", "1.0", "7", "0.5", "0.0"]
    assert repr(tuple(config.sample.guidance_interval.base)) == "(0.0, 3.0)"
    assert repr(config.train.constituent_drop.mel) == "0.0" and tuple(config.ablations.scales) == (0.0, 2.0)


@pytest.mark.parametrize(
    "values",
    [
        {"model.base.patch": 32, "model.upsampler.patch": 128},
        {"model.base.width": 1, "model.base.head_width": 1, "model.base.cond_width": 1},
        {"model.base.width": 24, "model.base.head_width": 24},
        {
            "model.upsampler.patch": 2, "model.upsampler.mults": (1, 3, 1, 1, 1, 1, 1),
            "model.upsampler.blocks": (1,) * 7, "model.upsampler.self_attention": (True,) * 7,
            "model.upsampler.cross_attention": (False,) * 6 + (True,),
        },
        {"model.base.dropout": 0.999, "model.base.remat": True, "model.dtype": "bfloat16"},
        {"data.inputs": (), "diffusion.base.sigma_data": 1e-3, "diffusion.base.p_std": 10},
        {"model.base.width": 2**16, "model.base.head_width": 2**16},
    ],
)  # fmt: skip
def test_valid_settings_can_be_built(config, values):
    """The checks accept unusual but valid settings (fault 16)."""
    config = changed(config, values)
    settings.check_config(config)
    system = build_system(config, features.make_layout(Schema(())), {})
    for stage in system.stages.values():
        jax.eval_shape(stage.init, jax.random.key(0))


def test_only_widths_that_the_norms_cannot_divide_are_rejected(config):
    """Widths that the norm groups do not divide ended in a traceback (fault 16)."""
    for width in (*range(1, 12), *range(12, 100, 4), *range(500, 580, 8)):
        images = jax.ShapeDtypeStruct((1, 2, 2, width), np.float32)
        one = changed(config, {"model.base.width": width, "model.base.head_width": 1})
        try:
            settings.check_config(one)
        except UserError as error:
            assert f"base.width={width}: " in str(error)
            with pytest.raises(ValueError, match="[Nn]umber of groups"):
                jax.eval_shape(group_norm(width, np.float32, "norm").init, jax.random.key(0), images)
        else:
            jax.eval_shape(group_norm(width, np.float32, "norm").init, jax.random.key(0), images)


@pytest.mark.parametrize("sample", [{"rho": 1}, {"rho": 1000}, {"steps": 1}, {"steps": 300}])
def test_valid_sigmas_are_finite_and_decreasing(demo, sample):
    """Extreme but valid sampler settings work (fault 16)."""
    extremes = {"sigma_min": 1e-6, "sigma_max": 1e6, **sample}
    config = changed(demo, {f"sample.{key}": value for key, value in extremes.items()})
    sigmas = sample_settings(config).sigmas(None)
    assert np.isfinite(sigmas).all() and (np.diff(sigmas) < 0).all()


@pytest.mark.parametrize("entry", [loop.train, ablate], ids=["train", "ablate"])
def test_entry_points_check_settings_before_opening_data(demo, tmp_path, entry):
    """Settings were checked too late or not at all (fault 16)."""
    config = changed(demo, {"workdir": str(tmp_path / "run"), "data.dir": str(tmp_path / "nowhere")})
    config.train.ema_decay = NAN
    with pytest.raises(UserError, match="config.train.ema_decay=nan"):
        entry(config)
    config.train.ema_decay = 0.5
    with pytest.raises(UserError, match="nowhere"):
        entry(config)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--config.train.base.steps=-5"], "train.base.steps=-5: must be a whole number of at least 1"),
        (["--config.train.base.batch_size", "16,8"], "batch_size=16,8: must be a whole number"),
        (["--config.model.base.blocks=(1"], r"blocks=\(1: must be a tuple"),
        (["--config.model.base.blocks=(1,x)"], r"blocks=\(1,x\): must be a tuple"),
        (["--config.train.base.steps=2.5"], "train.base.steps=2.5: must be a whole number"),
        (["--config.train.warmup_steps=2.5"], r"train.warmup_steps=2.5: must be a whole number"),
        (["--config.train.warmup_steps=inf"], r"train.warmup_steps=inf: must be a whole number"),
        (["--config.train.ema_decay=nan"], "train.ema_decay=nan: must be"),
        (["--config.model.base.self_attention=maybe"], "self_attention=maybe: must be a tuple"),
        (["--config.train.constituent_drop.voice=often"], "constituent_drop.voice='often': must be a finite number"),
        (["--config.train.constituent_drop.voice.x=1"], "no such key"),
        (["--config.train.max_to_keep"], "--config.train.max_to_keep: an override needs a value"),
        (["--config.train.max_to_keep", "--config.seed=1"], "--config.train.max_to_keep: an override needs a value"),
    ],
)
def test_invalid_override_ends_the_command(tmp_path, flags, message):
    """Overrides on the command line are checked as well (fault 16)."""
    with pytest.raises(UserError, match=message) as error:
        train.main(["--config", "configs/demo.py", f"--config.workdir={tmp_path / 'run'}", *flags])
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_only_inputs_of_the_dataset_can_be_dropped(tmp_path):
    """Also an input that configs/base.py does not list (fault 24)."""
    schema = Schema((Constituent("wavlm", 2, 8, "embedding"),))
    writer.write_shard(tmp_path / writer.shard_name("train", 0, 1), schema, [make_clip(0) | {"wavlm": np.ones((2, 8))}])
    writer.finalise(tmp_path, schema, {"train": 1})
    overrides = {"data.dir": str(tmp_path), "data.inputs": "wavlm,age", "workdir": str(tmp_path / "run"), "seed": "1e3"}
    drop = "train.constituent_drop."
    config = load_config("configs/demo.py", {**overrides, f"{drop}wavlm": "0.2"}, RULES)
    settings.check_config(config)
    run = prepare(config, False)
    assert run.config.train.constituent_drop.wavlm == 0.2 and run.system.inputs == ("wavlm", "age")
    with pytest.raises(UserError, match="unknown constituent 'voice'; this dataset's are: .*wavlm"):
        loop.train(load_config("configs/demo.py", {**overrides, f"{drop}voice": "0.2"}, RULES))
