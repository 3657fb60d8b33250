"""A cascade small enough to compile in a second or two."""

import subprocess
import sys
from pathlib import Path

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
    config.data.inputs = ("mel", "age", "gender")
    config.train.update(steps=(40, 8), batch_size=(4, 4), warmup=1, learning_rate=(5e-3, 5e-3), log_every=1)
    config.train.update(validate_every=8, preview_every=8, checkpoint_every=8)
    config.sample.update(steps=3)
    return config


def start_training(config, *overrides):
    """Training as a process of its own: numbers compared bit by bit must come from like processes."""
    path = Path(config.workdir) / "given.py"
    path.write_text(
        "import json, ml_collections\n"
        f"get_config = lambda: ml_collections.ConfigDict(json.loads({config.to_json()!r}), convert_dict=True)\n"
    )
    command = [sys.executable, "-m", "slf_jax.train", "--config", str(path), *overrides]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
