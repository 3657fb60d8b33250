"""A cascade small enough to compile in a second or two."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax

from slf_common.config import load_config
from slf_jax import state


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


def write_config(config):
    """The config as a file that commands take; its path."""
    path = Path(config.workdir) / "given.py"
    path.write_text(
        "import json, ml_collections\n"
        f"get_config = lambda: ml_collections.ConfigDict(json.loads({config.to_json()!r}), convert_dict=True)\n"
    )
    return path


def start_training(config, *overrides, devices=1, program=("-m", "slf_jax.train")):
    """Training as a process of its own: numbers compared bit by bit must come from like processes."""
    command = [sys.executable, *program, "--config", str(write_config(config)), *overrides]
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def wait_for_checkpoint(config, step, process, name="base", seconds=120):
    """Waits until a running training has saved that step."""
    path = Path(config.workdir) / "checkpoints" / name / str(step) / "_CHECKPOINT_METADATA"
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.05)


def weights(config, name="base"):
    """All numbers of a run's newest checkpoint, and its step."""
    with state.Checkpoints(config.workdir, name) as checkpoints:
        step = checkpoints.latest()
        restored = checkpoints._manager.restore(step)
        return step, jax.tree.leaves({"ema": restored["ema"], "training": restored["training"]})


def lines(config):
    """What metrics.jsonl holds."""
    return [json.loads(line) for line in (Path(config.workdir) / "metrics.jsonl").read_text().splitlines()]
