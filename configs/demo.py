"""The embedded default: synthetic talking people, a small cascade, two CPU cores.

    make demo
    make demo SIZE=toy PEOPLE=24    # every step of it in two minutes: shows that it runs, learns next to nothing

10 to 18 minutes with set-up, six to ten of them training, on two cores of a shared AMD EPYC. On 64 people never trained
on (synthetic ones), seed 0: PSNR 22.52 dB at scale 1, bicubic 19.49; SSIM 0.707, bicubic 0.509.
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
    # One low-resolution level after a large patch: per second of a CPU this learns most.
    small = dict(
        mults=(1,), blocks=(2,), self_attention=(True,), cross_attention=(False,), head_width=32,
        cond_width=96, dropout=0.0, width=128,
    )  # fmt: skip
    config.model.base.update(small, patch=4)
    config.model.upsampler.update(small, patch=8, self_attention=(False,))
    # Predicting the clean residual, with more weight on high noise, is what a short training needs.
    short = dict(preconditioning="x0", noise_std=1.4, residual=True)
    config.diffusion.base.update(short, noise_mean=0.5, max_weight=2.0, spread=0.18, spread_alone=0.5)
    config.diffusion.upsampler.update(
        short, noise_mean=0.7, max_weight=2.0, spread=0.12, spread_alone=0.12, low_noise=0.15
    )
    config.train.update(
        steps=(600, 900), batch_size=(16, 8), learning_rate=(3e-3, 3e-3), warmup=100, ema=0.998,
        log_every=25, validate_every=300, preview_every=300, checkpoint_every=300, keep=2,
    )  # fmt: skip
    config.sample.update(steps=8, sigma_min=0.2, sigma_max=20.0, temperature=0.75)
    return {"demo": config, "toy": _toy(config)}[size]


def _toy(demo: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    config = copy.deepcopy(demo)
    config.workdir = "runs/toy"
    config.extract.update(videos="data/toy/videos", out="data/toy/records", clips_per_shard=8)
    config.data.dir = "data/toy/records"
    for stage in (config.model.base, config.model.upsampler):
        stage.update(width=32, blocks=(1,), cond_width=32)
    config.train.update(steps=(20, 20), batch_size=(8, 4), warmup=5, log_every=5, validate_every=20, preview_every=20)
    config.train.checkpoint_every = 10
    return config
