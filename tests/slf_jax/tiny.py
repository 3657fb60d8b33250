"""A cascade that compiles in a second or two, and helpers to train it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax

from slf_common.config import load_config
from slf_jax.training.checkpoints import Checkpoints


def tiny_config(dataset, workdir, cache=""):
    """The demo's config, by diffusion, at toy sizes and without attention."""
    config = load_config("configs/demo.py:diffusion")
    sizes = dict(
        width=16, mults=(1,), blocks=(1,), self_attention=(False,), cross_attention=(False,), head_width=8,
        cond_width=16,
    )  # fmt: skip
    config.model.base.update(sizes, patch=4)
    config.model.upsampler.update(sizes, patch=16)
    config.data.dir, config.workdir = str(dataset), str(workdir)
    config.compilation_cache = cache
    config.data.inputs = ("mel", "age", "gender")
    set_stages(config, steps=(40, 8), batch_size=(4, 4), learning_rate=(5e-3, 5e-3))
    config.train.update(warmup_steps=1, log_every=1, validate_every=8, preview_every=8, checkpoint_every=8)
    config.sample.update(steps=3, guidance="cfg")
    return config


def with_attention(config):
    """Adds attention, as larger systems have, which doubles the time to compile a training step; returns the config."""
    config.model.base.update(self_attention=(True,), cross_attention=(True,))
    config.model.upsampler.update(cross_attention=(True,))
    return config


def set_stages(config, **settings):
    """Sets training settings of both stages: key=(base, upsampler)."""
    for key, values in settings.items():
        config.train.base[key], config.train.upsampler[key] = values


def write_config(config):
    """Writes the config to a file for `--config`; returns its path."""
    path = Path(config.workdir) / "given.py"
    path.write_text(
        "import json, ml_collections\n"
        f"get_config = lambda: ml_collections.ConfigDict(json.loads({config.to_json()!r}), convert_dict=True)\n"
    )
    return path


def start_training(config, *overrides, devices=1, program=("-m", "slf_jax.train")):
    """Starts training in its own process: runs that are compared bitwise need the same environment."""
    command = [sys.executable, *program, "--config", str(write_config(config)), *overrides]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def wait_for_checkpoint(config, step, process, name="base", seconds=300):
    """Waits until a training process has saved this step."""
    path = Path(config.workdir) / "checkpoints" / name / str(step) / "_CHECKPOINT_METADATA"
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.05)


def weights(config, name="base"):
    """The step of a run's newest checkpoint, and all its arrays."""
    with Checkpoints(config.workdir, name) as checkpoints:
        step = checkpoints.latest()
        restored = checkpoints._manager.restore(step)
        return step, jax.tree.leaves({"ema": restored["ema"], "training": restored["training"]})


def lines(config):
    """The entries of metrics.jsonl."""
    return [json.loads(line) for line in (Path(config.workdir) / "metrics.jsonl").read_text().splitlines()]
