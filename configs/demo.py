"""The demo: synthetic talking people and a small cascade, on two CPU cores.

    make demo
    make demo SIZE=toy PEOPLE=24    # all steps in two minutes: a smoke test that learns almost nothing
    python -m slf_jax.train --config configs/demo.py:diffusion    # the same people, by diffusion from noise

7 minutes including set-up, five of them for training, on two cores of a shared Intel Xeon. On 64 held-out synthetic
people, seed 0: PSNR 23.33 dB at scale 1, bicubic 19.49; SSIM 0.735, bicubic 0.509.
"""

import copy

import ml_collections

from configs import base


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
    # From the posterior mean to the face (docs/sampling.md): more fidelity for the time than diffusion from noise.
    flow = dict(preconditioning="flow", weight="snr", max_weight=1e4, residual=True)
    config.diffusion.base.update(flow, sigma_data=0.18, sigma_data_no_lowres=0.5)
    config.diffusion.upsampler.update(flow, sigma_data=0.12, sigma_data_no_lowres=0.12, lowres_aug_max=0.15)
    config.train.update(
        warmup_steps=100, ema_decay=0.998,
        log_every=25, validate_every=300, preview_every=300, checkpoint_every=300, max_to_keep=2,
    )  # fmt: skip
    config.train.base.update(steps=600, batch_size=16, learning_rate=3e-3)
    config.train.upsampler.update(steps=450, batch_size=8, learning_rate=3e-3)
    config.sample.update(sampler="ddim", steps=4, init_noise_scale=0.5)
    # High guidance scales keep fidelity if only the mean is guided, by little (docs/guidance.md).
    config.sample.update(guidance="apg", apg_r=0.02, apg_beta=0.0)
    config.sample.guidance_interval.update(base=(1.5, 2.5), upsampler=(1.5, 2.5))
    return {"demo": config, "toy": _toy(config), "diffusion": _diffusion(config)}[size]


def _diffusion(demo: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Diffusion from noise instead, in about the demo's time: more steps of training, which take less time each."""
    config = copy.deepcopy(demo)
    config.workdir = "runs/diffusion"
    # Predicting the clean residual, with more weight on high noise, works best in a short training.
    for stage, p_mean in ((config.diffusion.base, 0.5), (config.diffusion.upsampler, 0.7)):
        stage.update(preconditioning="x0", p_std=1.4, p_mean=p_mean, weight="edm", max_weight=2.0)
    config.train.base.steps, config.train.upsampler.steps = 900, 600
    # Steps at lower noise levels only add errors after a short training.
    config.sample.update(sigma_min=1.0, sigma_max=20.0, init_noise_scale=0.75, apg_r=0.03)
    config.sample.guidance_interval.update(base=(), upsampler=())
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
