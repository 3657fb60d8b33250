import json
import shutil

import numpy as np
import pytest
from PIL import Image

from slf_common.errors import UserError
from slf_jax import sweep
from slf_jax.evaluation import metrics
from slf_jax.inference import groups
from slf_jax.inference.scales import Scales
from slf_jax.inference.trained import load


@pytest.fixture(scope="module")
def swept(run, tmp_path_factory):
    workdir = shutil.copytree(run.workdir, tmp_path_factory.mktemp("swept") / "run")
    sweep.main(["--workdir", str(workdir), "--scales", "0,1,2.5:1", "--people", "5", "--chunk", "4", "--samples", "2"])
    return workdir / "sweep"


def test_sweep_writes_its_grid_and_metrics(swept):
    report = json.loads((swept / "metrics.json").read_text())
    assert report["people"] == 5 and report["seed"] == 0 and list(report["scales"]) == ["0", "1", "2.5:1"]
    assert report["samples"] == 2 and report["scales"]["1"]["psnr_sd"] > 0
    assert {"bicubic", "mean_face", "other_persons_conditions"} == set(report["controls"])
    assert set(report["checkpoints"]) == {"base", "upsampler"} and report["sampler"]["evaluations"]["base"] == 3
    assert report["controls"]["other_persons_conditions"]["scale"] == "2.5:1"
    width, height = Image.open(swept / "grid.png").size
    assert width == 5 * 130 and height == 20 + 8 * 130


def test_inputs_in_no_group_are_masked(run):
    scales, without = groups.parse("mel=0:2", load(run.workdir), ("age",))
    assert (scales.points, scales.groups, without) == (((0,), (2,)), (("mel",),), ("age", "gender"))
    assert groups.parse("0,2:1", load(run.workdir), ("age",)) == (Scales(((0, 0), (2, 1))), ("age",))


def test_the_thumbnail_is_a_group_of_systems_trained_without_it(run):
    scales, without = groups.parse("thumbnail=0:2,all=1", load(run.workdir), ())
    assert scales.groups == (("thumbnail",), ("mel", "age", "gender")) and without == ()
    assert groups.parse("mel+thumbnail=1", load(run.workdir), ())[0].groups == (("mel", "thumbnail"),)
    with pytest.raises(UserError, match="there is no thumbnail with --no-thumbnail"):
        groups.parse("thumbnail=0:2,all=1", load(run.workdir), (), use_thumbnail=False)
    always = load(run.workdir, overrides={"train.thumbnail_drop": "0.0"})
    with pytest.raises(UserError, match="always trained with the thumbnail .config.train.thumbnail_drop=0"):
        groups.parse("thumbnail=0:2,all=1", always, ())


@pytest.mark.slow
def test_two_scales_are_swept_as_a_grid(run, swept, tmp_path):
    """The first group goes down and the second one across; equal scales give the faces of a single scale."""
    flags = ["--scales", "voice=0:2,attributes=0:1:2", "--people", "3", "--out", str(tmp_path)]
    sweep.main(["--workdir", run.workdir, *flags])
    report = json.loads((tmp_path / "metrics.json").read_text())
    names = [f"voice {voice}, attributes {attributes}" for voice in (0, 2) for attributes in (0, 1, 2)]
    assert list(report["scales"]) == names
    assert report["controls"]["other_persons_conditions"]["scale"] == "voice 2, attributes 2"
    page = Image.open(tmp_path / "grid.png")
    left = page.width - 5 * 130  # the rows' names
    assert 0 < left < 130 and page.height == 20 + 6 * 130
    single = Image.open(swept / "grid.png").convert("RGB")  # columns: thumbnail, 0, 1, 2.5:1, real
    grid, single = np.asarray(page.convert("RGB"), int), np.asarray(single, int)
    for row, column, scale in ((0, 0, 0), (2, 0, 0)):  # of the first and second person, at scale 0
        ours = grid[20 + 130 * row :][:128, left + 130 * (1 + column) :][:, :128]
        theirs = single[20 + 130 * row :][:128, 130 * (1 + scale) :][:, :128]
        assert np.abs(ours - theirs).max() <= 1


@pytest.mark.slow
def test_noise_on_the_upsamplers_input_is_swept_like_a_scale(run, swept, tmp_path):
    flags = ["--scales", "1,2.5:1", "--lowres-aug", "0,0.15", "--people", "5", "--out", str(tmp_path)]
    sweep.main(["--workdir", run.workdir, *flags])
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert list(report["scales"]) == [f"{scale}, lowres_aug {aug}" for scale in ("1", "2.5:1") for aug in ("0", "0.15")]
    assert report["controls"]["other_persons_conditions"]["scale"] == "2.5:1, lowres_aug 0"
    psnr = {name: each["psnr"] for name, each in report["scales"].items()}
    assert psnr["1, lowres_aug 0"] != pytest.approx(psnr["1, lowres_aug 0.15"], abs=1e-5)
    grid = np.asarray(Image.open(tmp_path / "grid.png").convert("RGB"), int)  # columns: thumbnail, 0, 0.15, real
    single = np.asarray(Image.open(swept / "grid.png").convert("RGB"), int)  # columns: thumbnail, 0, 1, 2.5:1, real
    left = grid.shape[1] - 4 * 130
    for row, scale in enumerate((1, 2)):  # of the first person
        ours = grid[20 + 130 * row :][:128, left + 130 :][:, :128]
        theirs = single[20:][:128, 130 * (1 + scale) :][:, :128]
        assert np.abs(ours - theirs).max() <= 1


def test_noise_is_combined_with_every_scale(run):
    trained = load(run.workdir)
    scales = groups.with_lowres_aug(groups.parse("mel=0:2", trained, ())[0], "0,0.1", trained)
    assert scales.points == [(0, 0), (0, 0.1), (2, 0), (2, 0.1)] and scales.strengths == [(0,), (0,), (2,), (2,)]
    assert (
        scales.numbers == {"lowres_aug": [0, 0.1, 0, 0.1]} and scales.label(scales.points[3]) == "mel 2, lowres_aug 0.1"
    )
    assert scales.axes() == {"mel": (0, 2), "lowres_aug": (0, 0.1)}
    pairs = groups.with_lowres_aug(groups.parse("1,4:2", trained, ())[0], "0.1", trained)
    assert pairs.axes() == {"scale": ("1", "4:2"), "lowres_aug": (0.1,)}


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--scales", "0,nan"], "finite"),
        (["--scales", "1", "--lowres-aug", "0,0.2"], "--lowres-aug 0,0.2: give numbers from 0 to 0.15, the most in"),
        (["--scales", "1", "--lowres-aug", "-0.1"], "--lowres-aug -0.1: give numbers from 0"),
        (["--scales", "1", "--lowres-aug", "nan"], "--lowres-aug nan: give numbers from 0"),
        (["--scales", "1", "--lowres-aug", "0;1"], "--lowres-aug 0;1: give comma-separated numbers"),
        (["--scales", "1", "--lowres-aug", "0,0.0"], "--lowres-aug 0,0.0: 0 is given twice"),
        (["--scales", "mel=1,age=1", "--lowres-aug", "0"], "--lowres-aug 0: a picture has two axes"),
        (["--scales", "1", "--people", "0"], "--people 0: give at least 1"),
        (["--scales", "1", "--samples", "0"], "--samples 0: give at least 1"),
        (["--scales", "1", "--memory", "nan"], "--memory nan: give gigabytes"),
        (["--scales", "1", "--seed", "-1"], "--seed -1"),
        (
            ["--scales", "1", "--without", "mel,melody"],
            "'melody' is not an input of this system; its inputs are: mel, age",
        ),
        (["--scales", "1", "--split", "tset"], "no clips in split 'tset'"),
        (["--scales", "1", "--config.sample.sampler=euler"], "sampler='euler': must be one of: ancestral, ddim"),
        (["--scales", "1", "--config.sample.steps=0"], "config.sample.steps=0: must be"),
        (["--scales", "voice=0:2,1"], "1 names no group; give NAME=SCALE:SCALE"),
        (["--scales", "tone=0:2"], "no group or input 'tone'; a group is voice, attributes, all, or inputs joined by"),
        (["--scales", "attributes=1", "--without", "age,gender"], "no input in the group attributes; its inputs: mel"),
        (["--scales", "voice=1,mel=2"], "mel is given twice"),
        (["--scales", "all=1,auto=2"], "auto is the scale of a worse system; give that with --guide-with"),
        (["--scales", "1", "--guide-with", "nowhere"], "nowhere: no checkpoint of stage 'base'"),
        (["--scales", "voice=1:1"], "voice=1 is given twice"),
        (["--scales", "voice=-1"], "--scales voice=-1: a guidance scale is a finite number of at least 0"),
        (["--scales", "voice=1,age=1,gender=1"], "at most 2 groups"),
        (["--scales", "0,2,2.0"], "--scales 0,2,2.0: 2 is given twice"),
        (["--scales", "1", "--without", "mel,mel"], "--without mel,mel: mel is given twice"),
        (["--scales", "1", "--config.sample.rho", "0"], "config.sample.rho=0.0: must be"),
        (["--scales", "1", "--config.sample.step=3"], "did you mean --config.sample.steps"),
        (["--scales", "1", "--config.model.base.width=8"], "only --config.sample"),
        (["--scales", "1", "--memory", "0.0001"], "one person at 1 scales takes .* GB .* --memory"),
    ],
)
def test_invalid_arguments_are_rejected_in_one_line(run, tmp_path, flags, message):
    with pytest.raises(UserError, match=message) as error:
        sweep.main(["--workdir", run.workdir, "--out", str(tmp_path / "out"), *flags])
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_run_without_checkpoints_suggests_training(tmp_path):
    with pytest.raises(UserError, match="slf_jax.train"):
        sweep.main(["--workdir", str(tmp_path), "--scales", "1"])
    assert not list(tmp_path.iterdir())


def test_image_metrics():
    rng = np.random.default_rng(0)
    real = rng.integers(50, 200, (2, 128, 128, 3)).astype(np.uint8)
    brighter = real + 5
    np.testing.assert_allclose(metrics.psnr(brighter, real), 20 * np.log10(255 / 5))
    np.testing.assert_allclose(metrics.thumbnail_error(brighter, real), 5)
    assert (metrics.ssim(real, real) == 1).all() and (metrics.ssim(brighter, real) < 1).all()
    assert metrics.fidelity(np.stack([brighter, real + 10], 1), real)["thumbnail_error_sd"] == pytest.approx(5 / 2**0.5)
