"""A dataset of test people alone, such as the SLF Evaluation Dataset: the recipe of docs/data_card.md, on talkers."""

import csv
import json

import pytest

from extract import run as extract_run
from extract.talkers.population import generate
from slf_common.config import load_config
from slf_jax import evaluate, sample, sweep
from slf_jax.inference.trained import PRETRAINED, load
from slf_jax.training.loop import train


def extract_talkers(folder, people, seed, split=None):
    """A dataset of talkers, all of them in one split if it is given."""
    videos, records = folder / "videos", folder / "records"
    generate(videos, people, seed, 2)
    with (videos / "people.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (videos / "people.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({**row, "split": split or row["split"]} for row in rows)
    extract_run.main(["--config", "configs/demo.py", "--videos", str(videos), "--out", str(records)])
    return records


@pytest.fixture(scope="module")
def test_people(tmp_path_factory):
    records = extract_talkers(tmp_path_factory.mktemp("test_people"), 4, 1, "test")
    assert json.loads((records / "metadata.json").read_text())["statistics"] is None
    return records


@pytest.mark.slow
def test_the_shipped_system_draws_them_better_than_bicubic(test_people, tmp_path):
    """With the statistics of its own training data."""
    flags = ["--workdir", PRETRAINED, "--data", test_people, "--scales", "0,2", "--people", 4, "--out", tmp_path]
    sweep.main([str(flag) for flag in flags])
    sample.main([str(flag) for flag in [*flags[:4], "--people", 4, "--out", tmp_path / "faces"]])
    assert len(list((tmp_path / "faces").glob("p*.png"))) == 4
    measured = json.loads((tmp_path / "metrics.json").read_text())
    assert measured["people"] == 4 and measured["checkpoints"] == load(PRETRAINED).digests
    assert measured["scales"]["2"]["psnr"] > measured["controls"]["bicubic"]["psnr"] + 1


@pytest.mark.slow
def test_a_run_evaluates_them(test_people, tmp_path):
    config = load_config("configs/demo.py:toy")
    config.workdir, config.data.dir = str(tmp_path / "run"), str(extract_talkers(tmp_path, 8, 0))
    config.train.update(preview_every=0, validate_every=0)
    for stage in (config.train.base, config.train.upsampler):
        stage.update(steps=2, batch_size=2)
    assert train(config)
    source = ["--workdir", config.workdir, "--data", str(test_people)]
    evaluate.main([*source, "--scales", "2", "--same-clip", "--embedder", "eigenfaces"])
    results = json.loads((tmp_path / "run" / "evaluation" / "results.json").read_text())
    assert results["people"] == 4 and "scale 2" in results["systems"]
