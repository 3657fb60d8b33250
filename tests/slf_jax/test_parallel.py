"""One step on eight virtual devices equals the same step on one. A process of its own: devices are set at start."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json, sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
import numpy as np, optax
from jax.sharding import AxisType
sys.path[:0] = {path!r}
from tiny import tiny_config
from slf_jax import cascade, features, parallel, train
from slf_jax.state import init_state
from tfrecords.reader import Clips, batches

config = tiny_config({dataset!r}, {workdir!r})
clips = Clips(config.data.dir)
system = cascade.build(config, features.make_layout(clips.schema), clips.statistics)

def run(mesh, mode):
    optimizer = optax.sgd(0.1)  # Adam would hide a gradient that is eight times too large
    state = parallel.replicate(mesh, init_state(system.stages["base"], optimizer, jax.random.key(0)))
    key = parallel.replicate(mesh, jax.random.key(1))
    step = train.make_step(system, "base", optimizer, lambda step: 0.1, config.train)
    step, stream = parallel.compile_step(step, mesh, mode), batches(clips, 16, seed=0)
    for _ in range(3):
        state, metrics = step(state, parallel.split(mesh, mode, next(stream)), key)
    return jax.device_get((state.params, metrics))

one = run(jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1]), "shard_map")
eight = dict(shard_map=run(parallel.make_mesh(), "shard_map"), pmap=run(parallel.make_mesh(), "pmap"))

def gap(a, b):
    return max(float(np.abs(x - y).max()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))

start = jax.device_get(init_state(system.stages["base"], optax.sgd(0.1), jax.random.key(0)).params)
print(json.dumps(dict(
    devices=jax.device_count(),
    moved=gap(one[0], start),
    one_to_shard_map=gap(one[0], eight["shard_map"][0]),
    shard_map_to_pmap=gap(eight["shard_map"][0], eight["pmap"][0]),
    metrics=gap(one[1], eight["shard_map"][1]),
)))
"""


@pytest.fixture(scope="module")
def gaps(dataset, tmp_path_factory):
    here = Path(__file__).parent
    path = [str(here.parent.parent), str(here)]
    program = PROGRAM.format(path=path, dataset=str(dataset), workdir=str(tmp_path_factory.mktemp("eight")))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_eight_devices_train_as_one(gaps):
    assert gaps["devices"] == 8 and gaps["moved"] > 1e-3
    assert gaps["one_to_shard_map"] < 1e-5
    assert gaps["metrics"] < 1e-3


def test_pmap_and_shard_map_agree(gaps):
    assert gaps["shard_map_to_pmap"] < 1e-6
