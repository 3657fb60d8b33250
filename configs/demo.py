"""The demo: synthetic talking people and a small cascade, on two CPU cores.

    make demo
    make demo SIZE=toy PEOPLE=24    # all steps in two minutes: a smoke test that learns almost nothing
    python -m slf_jax.train --config configs/demo.py:flow         # the same people, with flows in both stages,
    python -m slf_jax.train --config configs/demo.py:diffusion    # or with diffusion in both

3 to 7 minutes including set-up, most of them for training, on two CPU cores. On 64 held-out synthetic people, seed 0:
PSNR 23.91 dB at scale 1, bicubic 19.49; SSIM 0.762, bicubic 0.509.
"""

import copy

import ml_collections

from configs import base

FLOW = dict(preconditioning="flow", weight="snr", max_weight=1e4)  # changes of `config.diffusion`
MEAN = (1.5, 2.5)  # the guidance interval in which only a flow's posterior mean is guided


def get_config(size: str = "demo") -> ml_collections.ConfigDict:
    config = base.get_config()
    config.workdir = "runs/demo"
    config.extract.update(
        videos="data/demo/videos", out="data/demo/records", clips_per_shard=64,
        extractors=("pyaudioanalysis", "mel"), detector="skip",
    )  # fmt: skip
    config.extract.deepface.estimate = ()
    config.data.update(
        dir="data/demo/records", inputs=("pyaudioanalysis", "mel", "age", "gender", "ethnicity"), threads=1
    )
    # One low-resolution level after a large patch learns fastest per second of CPU time. Attention in the base stage
    # would take half as long again, and learn no more.
    small = dict(
        mults=(1,), blocks=(2,), self_attention=(False,), cross_attention=(False,), head_width=32,
        cond_width=96, dropout=0.0, width=128,
    )  # fmt: skip
    config.model.base.update(small, patch=4)
    config.model.upsampler.update(small, patch=8)
    # The base stage predicts the clean residual, with more weight on high noise, which works best in a short training.
    # The upsampler always has an image to start from: from its posterior mean to the face (docs/sampling.md).
    config.diffusion.base.update(
        preconditioning="x0", p_mean=0.5, p_std=1.4, weight="edm", max_weight=2.0, residual=True,
        sigma_data=0.18, sigma_data_no_lowres=0.5,
    )  # fmt: skip
    config.diffusion.upsampler.update(
        FLOW, residual=True, sigma_data=0.12, sigma_data_no_lowres=0.12, lowres_aug_max=0.15
    )
    config.train.update(
        warmup_steps=100, ema_decay=0.998,
        log_every=25, validate_every=300, preview_every=300, checkpoint_every=300, max_to_keep=2,
    )  # fmt: skip
    config.train.base.update(steps=900, batch_size=16, learning_rate=3e-3)
    config.train.upsampler.update(steps=450, batch_size=8, learning_rate=3e-3)
    # Steps at lower noise levels only add errors after a short training.
    config.sample.update(sampler="ddim", steps=4, sigma_min=1.0, sigma_max=20.0, init_noise_scale=0.6)
    # High guidance scales then keep fidelity (docs/guidance.md). Of the upsampler, only the mean is guided.
    config.sample.update(guidance="apg", apg_r=0.025, apg_beta=0.0)
    config.sample.guidance_interval.upsampler = MEAN
    return {"demo": config, "toy": _toy(config), "flow": _flow(config), "diffusion": _diffusion(config)}[size]


def _flow(demo: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Both stages as flows: more faithful to a thumbnail, but without one a person's samples hardly differ."""
    config = copy.deepcopy(demo)
    config.workdir = "runs/flow"
    config.diffusion.base.update(FLOW)
    config.train.base.steps = 600  # fewer, since each takes longer
    config.sample.update(init_noise_scale=0.5, apg_r=0.02)
    config.sample.guidance_interval.base = MEAN
    return config


def _diffusion(demo: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Both stages by diffusion from noise."""
    config = copy.deepcopy(demo)
    config.workdir = "runs/diffusion"
    config.diffusion.upsampler.update(preconditioning="x0", p_mean=0.7, p_std=1.4, weight="edm", max_weight=2.0)
    config.train.upsampler.steps = 600  # more, since each takes half of the time
    config.sample.update(init_noise_scale=0.75, apg_r=0.03)
    config.sample.guidance_interval.upsampler = ()
    return config


def _toy(demo: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    config = copy.deepcopy(demo)
    config.workdir = "runs/toy"
    config.extract.update(videos="data/toy/videos", out="data/toy/records", clips_per_shard=8)
    config.data.dir = "data/toy/records"
    for stage in (config.model.base, config.model.upsampler):
        stage.update(width=32, blocks=(1,), cond_width=32)
    config.train.base.update(steps=20, batch_size=8)
    config.train.upsampler.update(steps=20, batch_size=4)
    config.train.update(warmup_steps=5, log_every=5, validate_every=20, preview_every=20, checkpoint_every=10)
    return config
