import json
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny import start_training

from slf_jax import state
from slf_jax.step import for_stage
from slf_jax.train import _short_of_room, train
from tfrecords.cli import UserError


def weights(config, name="base"):
    """All numbers of a run's newest checkpoint, and its step."""
    with state.Checkpoints(config.workdir, name) as checkpoints:
        step = checkpoints.latest()
        restored = checkpoints._manager.restore(step)
        return step, jax.tree.leaves({"ema": restored["ema"], "training": restored["training"]})


def test_a_run_can_be_read_without_us(run):
    workdir = Path(run.workdir)
    assert json.loads((workdir / "config.json").read_text())["model"]["base"]["width"] == 16
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for name, last in (("base", 40), ("upsampler", 8)):
        steps = [line["step"] for line in lines if line["stage"] == name and "loss" in line]
        assert steps == list(range(1, last + 1))
        assert any("validation_loss" in line for line in lines if line["stage"] == name)
        assert (workdir / "samples" / f"{name}_{last:07d}.png").stat().st_size > 1000
    assert {"loss_by_sigma", "grad_norm", "learning_rate", "images_per_second"} <= lines[0].keys()
    assert {path.parent.name for path in workdir.glob("tensorboard/*/events*")} == {"base", "upsampler"}


def test_training_lowers_the_loss(run):
    lines = [json.loads(line) for line in (Path(run.workdir) / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["stage"] == "base" and "loss" in line]
    validation = [line["validation_loss"] for line in lines if line["stage"] == "base" and "validation_loss" in line]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:3])
    assert validation[-1] < validation[0]


def test_running_a_finished_run_again_changes_nothing(run):
    before = weights(run)
    assert train(run)
    after = weights(run)
    assert before[0] == after[0] == 40
    for a, b in zip(before[1], after[1], strict=True):
        np.testing.assert_array_equal(a, b)


def wait_for(path, process, seconds=120):
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.05)


def test_stopped_killed_and_run_again_it_ends_with_the_same_numbers(fresh_config, run):
    config = fresh_config("killed")
    config.stage = "base"
    for after, blow, status in (("8", signal.SIGTERM, 0), ("24", signal.SIGKILL, -signal.SIGKILL)):
        process = start_training(config)
        wait_for(Path(config.workdir) / "checkpoints" / "base" / after / "_CHECKPOINT_METADATA", process)
        process.send_signal(blow)
        output = process.communicate(timeout=120)[0]
        assert process.returncode == status, output
        assert weights(config)[0] < 40
    again = start_training(config)
    output = again.communicate(timeout=180)[0]
    assert again.returncode == 0, output
    (step, found), (_, expected) = weights(config), weights(run)
    assert step == 40
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_damaged_checkpoint_is_never_used(run, tmp_path):
    import shutil

    shutil.copytree(Path(run.workdir) / "checkpoints", tmp_path / "checkpoints")
    data = max((tmp_path / "checkpoints" / "base" / "40" / "ema").rglob("d/*"), key=lambda p: p.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 16
    data.write_bytes(content)
    with pytest.raises(UserError, match="base/40: (damaged|cannot be read)"):
        state.load(tmp_path)


def test_a_checkpoint_of_another_width_is_refused(run, system):
    like = jax.eval_shape(system.stages["base"].init, jax.random.key(0))
    wider = jax.tree.map(lambda x: np.empty([2 * n for n in x.shape], x.dtype), like)
    with state.Checkpoints(run.workdir, "base") as checkpoints:
        assert checkpoints.restore_ema(40, like)
        with pytest.raises(UserError, match="base/40: (holds a model of other sizes|cannot be read as this model)"):
            checkpoints.restore_ema(40, wider)


def test_a_digest_sees_one_flipped_bit_and_a_swap():
    tree = {"a": np.ones(5, np.float32), "b": np.zeros(5, np.float32)}
    flipped = jax.tree.map(np.copy, tree)
    flipped["a"].view(np.uint8)[7] ^= 1
    assert len({state.digest(tree), state.digest(flipped), state.digest({"a": tree["b"], "b": tree["a"]})}) == 3


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("model.base.width", 32, "model.base.width is 32, there it is 16"),
        ("data.inputs", ("mel",), "data.inputs"),
        ("train.batch_size", (3,), "train.batch_size"),
        ("stage", "third", "all, base, upsampler"),
        ("data.dir", "nowhere", "extract.run"),
        ("parallel", "threads", "neither 'shard_map' nor 'pmap'"),
        ("train.batch_size", (0,), "batch_size=0"),
        ("train.constituent_drop.mel", 1.5, "constituent_drop.mel=1.5: a share lies between 0 and 1"),
        ("train.cond_drop", float("nan"), "cond_drop=nan: a share"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(run, fresh_config, key, value, message):
    config = run.copy_and_resolve_references()
    if key == "parallel":
        config.workdir = fresh_config("refused").workdir
    config.update_from_flattened_dict({key: value})
    before = (Path(run.workdir) / "config.json").read_bytes()
    with pytest.raises(UserError, match=message) as error:
        train(config)
    assert "\n" not in str(error.value)
    assert (Path(run.workdir) / "config.json").read_bytes() == before


def test_too_little_memory_is_told_with_the_batch_size(fresh_config):
    with pytest.raises(UserError, match=r"out of memory: lower config.train.batch_size=\(") as error:
        with _short_of_room(fresh_config("large")):
            jax.numpy.zeros((1 << 30, 1 << 16)).block_until_ready()
    assert "\n" not in str(error.value)


def test_pairs_of_settings():
    assert [for_stage((1, 2), name) for name in ("base", "upsampler")] == [1, 2]
    assert for_stage((3,), "upsampler") == for_stage(3, "upsampler") == 3
