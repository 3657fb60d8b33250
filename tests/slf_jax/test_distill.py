"""Distilling a run: the student is a run like any other, resumes bitwise, and bad input is one line."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny import lines, weights

from slf_common.errors import UserError
from slf_jax import distill, export, sample, sweep
from slf_jax.inference.sampler import Sampler
from slf_jax.inference.trained import load
from slf_jax.training.loop import train
from slf_jax.training.metrics import VALIDATION
from tfrecords.reader import Clips, stack

pytestmark = pytest.mark.slow

# The upsampler has too few steps for a validation.
SHORT = ("--config.train.base.steps=16", "--config.train.upsampler.steps=4", "--config.train.preview_every=0")


def command(run, out, *more):
    return ["--workdir", run.workdir, "--out", str(out), "--groups", "voice,attributes", *SHORT, *more]


@pytest.fixture(scope="module")
def student(run, tmp_path_factory):
    """A student of two groups that takes one step for three of its teacher's."""
    out = tmp_path_factory.mktemp("distilled") / "student"
    distill.main(command(run, out, "--steps", "1"))
    return out


def read_config(folder):
    return json.loads((folder / "config.json").read_text())


def files(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_the_config_records_what_was_distilled(run, student):
    config, teacher = read_config(student), load(run.workdir)
    assert config["distill"] == {
        "teacher": run.workdir, "digests": teacher.digests, "max_scale": 8.0, "groups": ["mel", "age+gender"],
        "substeps": 3,
    }  # fmt: skip
    assert {key: config["sample"][key] for key in ("sampler", "steps", "sigma_stride")} == {
        "sampler": "ddim", "steps": 1, "sigma_stride": 3,
    }  # fmt: skip
    before, after = (tree["base"]["unet"] for tree in (teacher.params, load(student).params))
    assert after.keys() - before.keys() == {"scales", "scale_gate"}


def test_the_distance_to_the_teacher_falls(student):
    found = [line[VALIDATION] for line in lines(load(student).meta.config) if VALIDATION in line]
    assert found[1] < found[0]


def test_a_student_samples_sweeps_and_exports(run, student, tmp_path):
    common = ["--workdir", str(student), "--people", "2"]
    sample.main([*common, "--scale", "4", "--out", str(tmp_path / "faces")])
    sweep.main([*common, "--scales", "voice=0:8,attributes=1", "--out", str(tmp_path / "sweep")])
    report = json.loads((tmp_path / "sweep" / "metrics.json").read_text())
    assert report["scales"].keys() == {"voice 0, attributes 1", "voice 8, attributes 1"}
    export.main(["--workdir", str(student), "--out", str(tmp_path / "model"), "--data", run.data.dir])
    assert read_config(tmp_path / "model")["config"]["distill"]["teacher"] == ""
    clips = Clips(run.data.dir, "test")
    faces = [
        Sampler(load(source))(stack([clips[0]]), np.arange(1), [(0.0, 0.0), (8.0, 2.0)], 0)
        for source in (student, tmp_path / "model")
    ]
    assert np.array_equal(*faces)


def test_a_stopped_student_resumes_to_identical_weights(run, student, tmp_path):
    copy = shutil.copytree(student, tmp_path / "copy")
    shutil.rmtree(copy / "checkpoints" / "base" / "16")
    distill.main(command(run, copy, "--steps", "1"))
    (step, found), (_, expected) = (weights(load(folder).meta.config) for folder in (copy, student))
    assert step == 16
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--groups", "voice"], "--groups voice: give two groups, as in voice,attributes"),
        (["--groups", "voice,mel"], "--groups voice,mel: mel is given twice"),
        (["--groups", "voice,haircut"], "--groups voice,haircut: no group or input 'haircut'"),
        (["--max-scale", "2"], "config.distill.max_scale=2.0: must be 0, or a finite number from 4 to 1000"),
        (["--steps", "2"], r"--steps 2: must divide the teacher's 3 steps \(config.sample.steps\)"),
        (["--steps", "1", "--config.sample.sampler=heun"], "'heun' cannot be distilled; .*sampler=ddim"),
        (["--config.model.base.width=32"], "--config.model.base.width: cannot be changed here"),
        (["--config.data.dir=nowhere"], "nowhere: "),
        (["--workdir", "nowhere"], "nowhere: no checkpoint of stage 'base'"),
    ],
)  # fmt: skip
def test_unusable_flags_are_one_line(run, tmp_path, flags, message):
    with pytest.raises(UserError, match=message) as error:
        distill.main(["--workdir", run.workdir, "--out", str(tmp_path / "none"), *flags])
    assert "\n" not in str(error.value) and not (tmp_path / "none").exists()


def test_another_teacher_or_task_does_not_resume(run, student):
    before = files(student)
    with pytest.raises(UserError, match=r"distill.max_scale is 6.0, there it is 8.0. Choose another --out"):
        distill.main(command(run, student, "--steps", "1", "--max-scale", "6"))
    with pytest.raises(UserError, match=r"sample.guidance is 'apg', there it is 'cfg'"):
        distill.main(command(run, student, "--steps", "1", "--config.sample.guidance=apg"))
    trained = load(run.workdir)
    trained.digests["base"] = "0"
    args = distill.parse_flags(command(run, student, "--steps", "1"))[0]
    teacher = distill.make_teacher(trained, args)
    with pytest.raises(UserError, match=r"distill.digests.base is '0', there it is '\w+'. Choose another --out"):
        train(distill.make_config(trained, teacher, args, {"train.base.steps": "16"}), teacher=teacher)
    assert files(student) == before


def test_a_student_refuses_what_it_was_not_trained_for(run, student, tmp_path):
    def sweep_at(scales, *more):
        sweep.main(["--workdir", str(student), "--scales", scales, "--out", str(tmp_path / "none"), *more])

    with pytest.raises(UserError, match="--scales 0,9: this system was distilled for scales up to 8, not for 9"):
        sweep_at("0,9")
    with pytest.raises(UserError, match=r"--scales attributes=1: this system was distilled for other groups"):
        sweep_at("attributes=1")
    with pytest.raises(UserError, match="--config.sample.guidance: this system's guidance was distilled"):
        sweep_at("1", "--config.sample.guidance=apg")
    with pytest.raises(UserError, match="was distilled for scales up to 8, not for 12"):
        sample.main(["--workdir", str(student), "--scale", "12", "--out", str(tmp_path / "none")])
    with pytest.raises(UserError, match="--max-scale 9: the teacher was distilled for scales up to 8"):
        distill.main(["--workdir", str(student), "--out", str(tmp_path / "none"), "--max-scale", "9"])
    with pytest.raises(UserError, match="--groups mel,age: the teacher was distilled for other groups"):
        distill.main(["--workdir", str(student), "--out", str(tmp_path / "none"), "--groups", "mel,age"])
    assert not (tmp_path / "none").exists()
    with pytest.raises(UserError, match="config.distill.max_scale=8: use slf_jax.distill"):
        train(load(student).meta.config)
