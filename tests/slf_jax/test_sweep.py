import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from slf_jax import sweep
from slf_jax.evaluation import metrics
from slf_jax.state import load
from tfrecords.cli import UserError
from tfrecords.reader import Clips, stack


@pytest.fixture(scope="module")
def swept(run):
    sweep.main(["--workdir", run.workdir, "--scales", "0,1,2.5:1", "--people", "5", "--chunk", "4"])
    return Path(run.workdir) / "sweep"


def test_a_sweep_writes_its_grid_and_its_figures(swept):
    report = json.loads((swept / "metrics.json").read_text())
    assert report["people"] == 5 and report["seed"] == 0 and list(report["scales"]) == ["0", "1", "2.5:1"]
    assert {"bicubic", "mean_face", "other_persons_conditions"} == set(report["controls"])
    assert set(report["checkpoints"]) == {"base", "upsampler"}
    assert report["controls"]["other_persons_conditions"]["scale"] == "2.5:1"
    width, height = Image.open(swept / "grid.png").size
    assert width == 5 * 130 and height == 20 + 5 * 130


def test_results_do_not_depend_on_chunks(run):
    trained, clips = load(run.workdir), Clips(run.data.dir, "test")
    people = [clips[i] for i in range(5)]
    batch, numbers = stack(people), np.array([sweep.person_number(c["clip_id"]) for c in people])
    whole, parts = (sweep.Sampler(trained, chunk)(batch, numbers, ((0, 0), (2, 2)), 7).astype(int) for chunk in (5, 2))
    assert whole.shape == (2, 5, 128, 128, 3)
    assert np.abs(whole - parts).max() <= 1


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "empty"),
        (" , ", "empty"),
        ("1,-2", "at least 0"),
        ("0,nan", "finite"),
        ("0;1", "commas"),
        ("1:2:3", "BASE:UPSAMPLER"),
    ],
)
def test_wrong_scales_are_refused(text, message):
    with pytest.raises(UserError, match=message):
        sweep.parse_scales(text)


def test_a_run_without_checkpoints_says_how_to_train(tmp_path):
    with pytest.raises(UserError, match="slf_jax.train"):
        sweep.main(["--workdir", str(tmp_path), "--scales", "1"])
    assert not list(tmp_path.iterdir())


def test_people_are_the_first_clip_of_each_speaker(dataset):
    clips = Clips(dataset, "test")
    assert [clip["speaker_id"] for clip in sweep.choose_people(clips, 3)] == ["test0", "test1", "test2"]
    assert len(sweep.choose_people(clips, 100)) == 6


def test_measures():
    rng = np.random.default_rng(0)
    real = rng.integers(50, 200, (2, 128, 128, 3)).astype(np.uint8)
    brighter = real + 5
    np.testing.assert_allclose(metrics.psnr(brighter, real), 20 * np.log10(255 / 5))
    np.testing.assert_allclose(metrics.guide_error(brighter, real), 5)
    assert (metrics.ssim(real, real) == 1).all() and (metrics.ssim(brighter, real) < 1).all()
