"""A cascade small enough to compile in a second or two."""

from tfrecords.cli import load_config


def tiny_config(dataset, workdir, cache=""):
    """The demo's config at toy sizes, with cross-attention."""
    config = load_config("configs/demo.py")
    sizes = dict(
        width=16, mults=(1,), blocks=(1,), self_attention=(True,), cross_attention=(True,), head_width=8, cond_width=16
    )
    config.model.base.update(sizes, patch=4)
    config.model.upsampler.update(sizes, patch=16)
    config.data.dir, config.workdir = str(dataset), str(workdir)
    config.compilation_cache = cache
    config.train.update(steps=(4, 4), batch_size=(4, 4), warmup=1, log_every=1)
    config.train.update(validate_every=100, preview_every=100, checkpoint_every=2)
    config.sample.update(steps=3)
    return config
