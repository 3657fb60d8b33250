import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny import lines, set_stages, start_training, wait_for_checkpoint, weights

from slf_common.errors import UserError
from slf_jax import distributed
from slf_jax.inference.trained import load
from slf_jax.training.checkpoints import Checkpoints, digest
from slf_jax.training.interruption import explain_resource_errors
from slf_jax.training.loop import train
from slf_jax.training.metrics import VALIDATION, drop_lines
from slf_jax.training.optimizer import make_optimizer
from slf_jax.training.run import _open_validation, check_same_run
from slf_jax.training.settings import train_settings
from slf_jax.training.state import TrainState
from tfrecords import writer
from tfrecords.codec import index_shard


def test_run_writes_standard_formats(run):
    workdir = Path(run.workdir)
    assert json.loads((workdir / "config.json").read_text())["model"]["base"]["width"] == 16
    entries = lines(run)
    for name, last in (("base", 40), ("upsampler", 8)):
        steps = [line["step"] for line in entries if line["stage"] == name and "loss" in line]
        assert steps == list(range(1, last + 1))
        assert any("validation_loss" in line for line in entries if line["stage"] == name)
        assert (workdir / "samples" / f"{name}_{last:07d}.png").stat().st_size > 1000
    assert entries[0].keys() >= {
        "loss_by_sigma", "grad_norm", "param_norm", "update_norm", "learning_rate", "images_per_second",
        "step_seconds", "data_wait", "skipped",
    }  # fmt: skip
    assert all(0 <= line["data_wait"] < 1 and line["step_seconds"] > 0 for line in entries if "loss" in line)
    events = list(workdir.glob("tensorboard/*/events.out.tfevents.*"))
    assert {path.parent.name for path in events} == {"base", "upsampler"}
    for path in events:  # TensorBoard's files are TFRecords too
        with path.open("rb") as file:
            spans, fault = index_shard(file, path.stat().st_size, path.name)
        text = path.read_bytes()
        assert fault is None and len(spans) > 8 and b"loss_by_sigma_3" in text and b"samples" in text


def test_training_lowers_the_loss(run):
    base = [line for line in lines(run) if line["stage"] == "base"]
    losses = [line["loss"] for line in base if "loss" in line]
    validation = [line["validation_loss"] for line in base if "validation_loss" in line]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:3])
    assert validation[-1] < validation[0]


@pytest.mark.slow
def test_stopped_and_killed_run_resumes_to_identical_results(fresh_config, run):
    config = fresh_config("killed")
    config.stage = "base"
    for after, sent, status in ((8, signal.SIGTERM, 0), (24, signal.SIGKILL, -signal.SIGKILL)):
        process = start_training(config)
        wait_for_checkpoint(config, after, process)
        process.send_signal(sent)
        output = process.communicate(timeout=400)[0]
        assert process.returncode == status, output
        assert weights(config)[0] < 40
        if status == 0:
            assert "To resume:\n  python -m slf_jax.train --config " in output
    again = start_training(config)
    output = again.communicate(timeout=180)[0]
    assert again.returncode == 0, output
    (step, found), (_, expected) = weights(config), weights(run)
    assert step == 40
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    # Steps that are repeated after a kill are logged once.
    logged = [(line["step"], line["loss"]) for line in lines(config) if "loss" in line]
    assert logged == [(line["step"], line["loss"]) for line in lines(run) if "loss" in line and line["stage"] == "base"]


@pytest.fixture
def copy(run, tmp_path):
    """A copy of the finished run in its own folder."""
    config = run.copy_and_resolve_references()
    config.workdir = str(tmp_path / "run")
    shutil.copytree(run.workdir, config.workdir)
    return config


def contents(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_rerunning_a_finished_run_changes_nothing(run, copy):
    config = Path(copy.workdir) / "config.json"
    config.write_text(config.read_text().replace(run.workdir, copy.workdir))
    before = contents(copy.workdir)
    assert train(copy)
    assert contents(copy.workdir).items() >= before.items()  # TensorBoard's log gets a new, empty file


def flip_bit(workdir, step):
    item = Path(workdir) / "checkpoints" / "base" / str(step) / "ema"
    data = max(item.rglob("d/*"), key=lambda p: p.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 16
    data.write_bytes(content)


def test_damaged_checkpoint_is_never_used(copy):
    flip_bit(copy.workdir, 40)
    with pytest.raises(UserError, match=r"base/40: (damaged|cannot be read).*--skip-damaged to use the previous one"):
        load(copy.workdir)
    with pytest.raises(UserError, match="base/40: (damaged|cannot be read).*--skip-damaged .* resume from step 32"):
        train(copy)
    assert weights(copy)[0] == 40  # no file was changed
    assert train(copy, skip_damaged=True)
    assert weights(copy)[0] == 40
    assert (Path(copy.workdir) / "checkpoints" / "damaged-base-40").is_dir()
    load(copy.workdir)


def test_compatible_change_is_recorded(run, copy, capsys):
    copy.train.log_every, copy.model.base.remat = 3, True
    assert train(copy)
    assert "train.log_every: 1 -> 3" in capsys.readouterr().out
    changes = json.loads((Path(copy.workdir) / "changes.jsonl").read_text())
    assert changes["changes"].pop("workdir") == [run.workdir, copy.workdir]
    assert changes["changes"] == {"model.base.remat": [False, True], "train.log_every": [1, 3]}
    assert changes["after"] == {"base": 40, "upsampler": 8}
    assert json.loads((Path(copy.workdir) / "config.json").read_text())["train"]["log_every"] == 3


def test_resuming_with_other_features_is_rejected(copy, dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "other")
    metadata = json.loads((tmp_path / "other" / "metadata.json").read_text())
    metadata["statistics"]["mel"]["mean"] = [40.0] * 768
    (tmp_path / "other" / "metadata.json").write_text(json.dumps(metadata))
    copy.data.dir = str(tmp_path / "other")
    with pytest.raises(UserError, match="other: .*'mel' differs by .* standard deviations .*another --config.workdir"):
        train(copy)


def test_dataset_without_training_split_is_rejected(fresh_config, eval_only_dataset):
    """A dataset without a training split is a one-line error in training (fault 9)."""
    config = fresh_config("eval_only")
    config.data.dir = str(eval_only_dataset)
    with pytest.raises(UserError, match=f"{eval_only_dataset}: no clips in split 'train'; it has test$"):
        train(config)
    assert not (Path(config.workdir) / "config.json").exists()


def toy_state(step):
    numbers = {"w": np.full(3, step, np.float32)}
    return TrainState(np.int32(step), np.int32(0), np.float32(1), numbers, numbers, ())


def test_newest_and_best_checkpoints_are_kept(run, tmp_path):
    with Checkpoints(run.workdir, "base") as checkpoints:
        meta = checkpoints.meta(40)
    with Checkpoints(tmp_path, "base", max_to_keep=2, keep_best=1) as checkpoints:
        for step, loss in enumerate((3.0, 1.0, None, 5.0, 4.0, 6.0), 1):
            checkpoints.save(toy_state(step), meta, loss)
    with Checkpoints(tmp_path, "base") as checkpoints:
        assert checkpoints._manager.all_steps() == [2, 5, 6]
        assert (checkpoints.best(), checkpoints.latest()) == (2, 6)
        assert checkpoints.restore(2, toy_state(0)).params["w"][0] == 2


def test_best_checkpoint_can_be_loaded(run):
    losses = {line["step"]: line[VALIDATION] for line in lines(run) if VALIDATION in line}
    with Checkpoints(run.workdir, "base") as checkpoints:
        kept = checkpoints._manager.all_steps()
        assert checkpoints.best() == min(kept, key=losses.get)
    assert load(run.workdir, "best").params.keys() == {"base", "upsampler"}


@pytest.fixture
def small_disk(tmp_path):
    """A file system with a capacity of 3 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", path], capture_output=True)
    if made.returncode:
        pytest.skip("needs permission to mount a file system")
    yield path
    subprocess.run(["umount", path], check=True)


@pytest.mark.slow
def test_full_disk_ends_the_run_and_keeps_the_last_checkpoint(fresh_config, run, small_disk):
    config = fresh_config("full")
    config.update(stage="base", compilation_cache=run.compilation_cache)
    config.train.update(preview_every=1000, max_to_keep=100)
    original_workdir = Path(config.workdir)
    process = start_training(config, f"--config.workdir={small_disk / 'run'}")
    output = process.communicate(timeout=180)[0]
    errors = re.findall(r"\berror: .*", output)  # TensorStore's threads may print before, after and on the same line
    assert process.returncode == 2 and len(errors) == 1, output
    assert "No space left on device" in errors[0] and "run the same command again" in errors[0]
    with Checkpoints(small_disk / "run", "base") as checkpoints:
        step = checkpoints.latest()
        like = jax.eval_shape(lambda: checkpoints._manager.restore(step)["ema"])
        assert step >= 8 and checkpoints.restore_ema(step, like)
    shutil.rmtree(original_workdir)


@pytest.mark.slow
def test_new_run_starts_from_the_weights_of_another(run, fresh_config):
    config = fresh_config("fine")
    config.update(init_from=run.workdir, compilation_cache=run.compilation_cache)
    config.train.update(validate_every=0, preview_every=0)
    set_stages(config, learning_rate=(1e-30, 1e-30), steps=(8, 8))
    assert train(config)
    for name, params in load(run.workdir).params.items():
        for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(load(config.workdir).params[name]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)
    wider = fresh_config("wider")
    wider.update(init_from=run.workdir, stage="base")
    wider.model.base.width = 32
    with pytest.raises(UserError, match="(other sizes|cannot be read as this model|other parameters)"):
        train(wider)


@pytest.mark.slow
def test_non_finite_loss_ends_the_run_and_names_step_and_module(run, fresh_config):
    config = fresh_config("nan")
    config.update(stage="base", compilation_cache=run.compilation_cache)
    config.train.base.learning_rate = 1e30
    # The first update is enormous, which makes the loss of the second step overflow.
    with pytest.raises(UserError, match=r"step 2 of stage base: the loss is .*not finite is the output of \w+/\w+"):
        train(config)
    assert not list(Path(config.workdir).glob("checkpoints/base/[0-9]*"))
    assert [line["step"] for line in lines(config)] == [1]


@pytest.fixture(scope="module")
def quiet(run, fresh_config):
    """The config of a run with all intervals 0, and with a profile."""
    config = fresh_config("quiet")
    config.update(stage="base", compilation_cache=run.compilation_cache, profile_steps=2)
    config.train.update(log_every=0, validate_every=0, preview_every=0, checkpoint_every=0)
    assert train(config)
    return config


@pytest.mark.slow
def test_interval_of_0_disables_an_action_but_the_last_step_is_saved(run, quiet):
    """An interval of 0 raised a ZeroDivisionError (fault 16)."""
    workdir = Path(quiet.workdir)
    assert [path.name for path in workdir.glob("checkpoints/base/[0-9]*")] == ["40"]
    assert lines(quiet) == [] and not list(workdir.glob("samples/*"))
    assert Path(run.workdir, "samples").exists() and lines(run)  # with intervals above 0


@pytest.mark.slow
def test_profile_is_written_for_tensorboard(quiet):
    (trace,) = Path(quiet.workdir).glob("tensorboard/plugins/profile/*/*.xplane.pb")
    assert trace.stat().st_size > 1000


@pytest.mark.slow
def test_spikes_are_skipped_and_counted(run, fresh_config):
    config = fresh_config("spikes")
    config.update(stage="base", compilation_cache=run.compilation_cache)
    config.train.base.steps, config.train.skip_spikes = 16, 1.0
    config.train.update(validate_every=0, preview_every=0)
    assert train(config)
    entries = [line for line in lines(config) if "loss" in line]
    assert 0 < entries[-1]["skipped"] < 16
    schedule = make_optimizer(train_settings(config, "base"))[1]
    skipped = [0, *(line["skipped"] for line in entries)]
    rates = [float(schedule(step - count)) for step, count in enumerate(skipped[:-1])]
    np.testing.assert_allclose([line["learning_rate"] for line in entries], rates, rtol=1e-5)
    for before, after in zip(entries, entries[1:], strict=False):
        unchanged = before["param_norm"] == after["param_norm"]
        assert unchanged == (after["skipped"] == before["skipped"] + 1)


@pytest.mark.parametrize("warmup_steps, first", [(0, 1.0), (1, 1.0), (4, 0.25)])
def test_rate_is_positive_in_the_first_step_and_final_in_the_last(fresh_config, warmup_steps, first):
    """Step 1 always had a rate of 0, and the last step more than the final rate (fault 21)."""
    settings = dataclasses.replace(
        train_settings(fresh_config("rates"), "base"), learning_rate=2e-3, steps=20, warmup_steps=warmup_steps,
        final_lr_fraction=0.1,
    )  # fmt: skip
    rates = [float(make_optimizer(settings)[1](count)) for count in range(20)]
    assert rates[0] == pytest.approx(first * 2e-3) and rates[-1] == pytest.approx(2e-4)
    assert max(rates) == pytest.approx(2e-3) == rates[max(warmup_steps, 1) - 1]
    single_step = dataclasses.replace(settings, steps=1)
    assert float(make_optimizer(single_step)[1](0)) == pytest.approx(2e-3)


def test_checkpoint_of_another_width_is_rejected(run):
    like = load(run.workdir, stages=("base",)).params["base"]
    wider = jax.tree.map(lambda x: np.empty([2 * n for n in x.shape], x.dtype), like)
    with Checkpoints(run.workdir, "base") as checkpoints:
        assert checkpoints.restore_ema(40, like)
        with pytest.raises(UserError, match="base/40: (its model has other sizes|cannot be read as this model)"):
            checkpoints.restore_ema(40, wider)


def test_digest_detects_a_flipped_bit_and_a_swap():
    tree = {"a": np.ones(5, np.float32), "b": np.zeros(5, np.float32)}
    flipped = jax.tree.map(np.copy, tree)
    flipped["a"].view(np.uint8)[7] ^= 1
    assert len({digest(tree), digest(flipped), digest({"a": tree["b"], "b": tree["a"]})}) == 3


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("model.base.width", 32, "model.base.width is 32, there it is 16"),
        ("data.inputs", ("mel",), "data.inputs"),
        ("train.base.batch_size", 3, "train.base.batch_size"),
        ("stage", "third", "all, base, upsampler"),
        ("data.dir", "nowhere", "extract.run"),
        ("parallel", "threads", "parallel='threads': must be one of: shard_map, pmap"),
        ("train.base.batch_size", 0, "batch_size=0: must be"),
        ("train.base.accumulate", 3, "batch_size=4: must be a multiple of config.train.base.accumulate=3"),
        ("train.steps_per_dispatch", 3, "steps=.*must be a multiple of config.train.steps_per_dispatch=3"),
        ("train.steps_per_dispatch", 0, "steps_per_dispatch=0: must be a whole number of at least 1"),
        ("train.max_to_keep", 0, "max_to_keep=0: must be"),
        ("init_from", "nowhere", "nowhere: no checkpoint of stage 'base'"),
        ("train.constituent_drop.mel", 1.5, "constituent_drop.mel=1.5: must be a finite number from 0 to 1"),
        ("train.cond_drop", float("nan"), "cond_drop=nan: must be"),
    ],
)
def test_invalid_settings_are_rejected_in_one_line(run, fresh_config, key, value, message):
    config = run.copy_and_resolve_references()
    if key in ("parallel", "init_from"):
        config.workdir = fresh_config("refused").workdir
    config.update_from_flattened_dict({key: value})
    before = (Path(run.workdir) / "config.json").read_bytes()
    with pytest.raises(UserError, match=message) as error:
        train(config)
    assert "\n" not in str(error.value)
    assert (Path(run.workdir) / "config.json").read_bytes() == before


def test_run_without_its_config_is_reported(fresh_config):
    config = fresh_config("lost")
    (Path(config.workdir) / "checkpoints/base/8").mkdir(parents=True)
    with pytest.raises(UserError, match="config.json: missing"):
        check_same_run(config, Path(config.workdir))


def test_out_of_memory_error_names_the_batch_size(fresh_config):
    with pytest.raises(UserError, match="out of memory: lower config.train.STAGE.batch_size") as error:
        with explain_resource_errors(fresh_config("large")):
            jax.numpy.zeros((1 << 30, 1 << 16)).block_until_ready()
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_run_directory_may_have_any_name(run, tmp_path, monkeypatch):
    """Checkpoints in folders with glob characters were saved but could not be read (fault 3)."""
    monkeypatch.chdir(tmp_path)
    config = run.copy_and_resolve_references()
    config.update(stage="base", workdir="-sweep[width=32]/*?{a} 'b' %41 ü::c:d#")
    assert train(config) and train(config)  # the second call only reads the run
    trained = load(config.workdir, stages=("base",))
    shutil.copytree(Path(config.workdir, "checkpoints"), "plain/checkpoints")  # it can also be read under a plain name
    assert load("plain", stages=("base",)).digests == trained.digests
    shutil.copytree(run.workdir, "[of another]/x")
    assert load("[of another]/x").digests == load(run.workdir).digests
    for name, message in {"back\\slash": "contains a backslash", "new\nline": "control characters"}.items():
        config.workdir = name
        with pytest.raises(UserError, match=message):
            train(config)
        assert not Path(name).exists()


def test_checkpoint_is_read_back_before_older_ones_are_removed(run, tmp_path):
    """Older checkpoints were removed before the new one had been verified (fault 3)."""
    with Checkpoints(run.workdir, "base") as checkpoints:
        meta = checkpoints.meta(40)
    with pytest.raises(UserError, match=r"base/2: .*just been written.*--skip-damaged resumes from step 1"):
        with Checkpoints(tmp_path, "base", max_to_keep=1) as checkpoints:
            checkpoints.save(toy_state(1), meta)
            checkpoints.save(toy_state(2), meta)
            checkpoints._manager.wait_until_finished()
            flip_bit(tmp_path, 2)
            checkpoints.save(toy_state(3), meta)
    with Checkpoints(tmp_path, "base", max_to_keep=1) as checkpoints:
        assert checkpoints._manager.all_steps() == [1, 2]
        assert checkpoints.resume(toy_state(0), skip_damaged=True).params["w"][0] == 1
        checkpoints.save(toy_state(2), meta)
        checkpoints._manager.wait_until_finished()
        flip_bit(tmp_path, 2)
        with pytest.raises(UserError, match="just been written"):  # on exit as well
            checkpoints.__exit__(None, None, None)
    with Checkpoints(tmp_path, "base", max_to_keep=1) as checkpoints:
        assert checkpoints.resume(toy_state(0), skip_damaged=True).params["w"][0] == 1
    assert (tmp_path / "checkpoints" / "damaged-base-2-again").is_dir()


def test_damaged_validation_split_is_an_error(run, dataset, tmp_path):
    """Training continued without validation if a shard was missing (fault 7)."""
    shutil.copytree(dataset, tmp_path / "copy")
    (tmp_path / "copy" / writer.shard_name("validation", 0, 1)).unlink()
    settings = run.data.copy_and_resolve_references()
    settings.dir = str(tmp_path / "copy")
    with pytest.raises(UserError, match="validation.*shard is missing"):
        _open_validation(settings)
    info = json.loads((tmp_path / "copy" / "dataset_info.json").read_text())
    info["splits"] = [split for split in info["splits"] if split["name"] != "validation"]
    (tmp_path / "copy" / "dataset_info.json").write_text(json.dumps(info))
    assert _open_validation(settings) is None


@pytest.mark.parametrize("file", ["config.json", "metrics.jsonl"])
def test_damaged_file_of_a_run_is_named(copy, file):
    """Damaged files must not be treated like absent ones (fault 7)."""
    path = Path(copy.workdir) / file
    path.write_text("{" + path.read_text())
    with pytest.raises(UserError, match=file) as error:
        check_same_run(copy, Path(copy.workdir))
        drop_lines(path, "base", 8)
    assert "\n" not in str(error.value)


COMPILING = """
from slf_jax.training.interruption import stop_signals
import jax, jax.numpy as jnp

def slow(x):
    for _ in range(1000):
        x = jnp.sin(x @ x) + jax.lax.conv(x[None, None], x[None, None, :3, :3], (1, 1), "SAME")[0, 0]
    return x

lowered = jax.jit(slow).lower(jnp.ones((64, 64)))
with stop_signals():
    print("compiling", flush=True)
    lowered.compile()
"""


def test_second_ctrl_c_while_compiling_ends_at_once():
    """A second Ctrl-C ends the command with one line (fault 17)."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-c", COMPILING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    signal.signal(signal.SIGINT, before)
    assert process.stdout.readline() == "compiling\n"
    process.send_signal(signal.SIGINT)
    assert (
        process.stderr.readline() + process.stderr.readline()
        == "\nstopping after this step; press Ctrl-C to end at once\n"
    )
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=400) == ("", "\ninterrupted; the last checkpoint is intact\n")
    assert process.returncode == 130


def test_unusable_cache_is_skipped_with_a_note(tmp_path, capsys):
    """A user without a home directory can train (fault 17)."""
    before = jax.config.jax_compilation_cache_dir
    (tmp_path / "file").write_text("")
    for directory, reason in (
        ("~no-such-user/xla", "home directory is not known"), (f"{tmp_path}/file/xla", "is a file"),
    ):  # fmt: skip
        distributed.use_compilation_cache(directory)
        note = capsys.readouterr().err
        assert note.startswith("note: compiled programs are not cached") and reason in note
    assert jax.config.jax_compilation_cache_dir == before
