import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from slf_common.errors import UserError
from slf_jax import report
from slf_jax.training.metrics import read_metrics, series
from slf_jax.training.report import find_previews


def line(step, stage="base", **numbers):
    return json.dumps({"stage": stage, "step": step, **numbers}) + "\n"


def training(step, **numbers):
    return line(step, **{"loss": 1 / step, "loss_by_sigma": [1.0, 2.0, 3.0, 4.0], "grad_norm": 0.5, **numbers})


@pytest.fixture
def folder(tmp_path):
    """A run at step 5 of 8 that has been validated once."""
    entries = [training(step, step_seconds=2.0, data_wait=0.01, skipped=0) for step in range(1, 6)]
    (tmp_path / "metrics.jsonl").write_text("".join(entries) + line(4, validation_loss=0.3125))
    config = {"train": {"base": {"steps": 8, "batch_size": 4}}, "data": {"dir": "<script>alert(1)</script>"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def draw(folder):
    report.main(["--workdir", str(folder)])
    return (folder / "report.html").read_text()


def test_page_shows_the_progress_of_the_run(folder):
    page = draw(folder)
    assert "5 of 8" in page and "0.3125" in page and "10 s" in page  # five steps of two seconds
    assert "Loss by noise level" in page and "Norms" in page and "Skipped steps" not in page
    assert "<h2>upsampler</h2>" not in page


def test_page_is_self_contained(folder):
    page = draw(folder)
    assert not re.search(r"https?://", re.sub(r'xmlns(:\w+)?="[^"]*"', "", page))
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page


def test_last_line_of_a_step_counts_and_a_truncated_line_is_ignored(folder):
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(training(5, loss=7.5) + training(6)[:20])
    (stage,) = read_metrics(folder / "metrics.jsonl")
    steps, losses = series(stage.training, "loss")
    assert steps.tolist() == [1, 2, 3, 4, 5] and losses[-1] == 7.5
    draw(folder)


def test_finished_run_shows_its_previews(run, tmp_path):
    shutil.copytree(run.workdir, tmp_path / "run")
    page = draw(tmp_path / "run")
    assert "40 of 40" in page and "8 of 8" in page
    assert page.count("data:image/jpeg;base64,") == 5 + 1  # one every eight steps: base 40, upsampler 8
    changes = {"after": {"base": 24}, "changes": {"train.log_every": [1, 3]}}
    (tmp_path / "run" / "changes.jsonl").write_text(json.dumps(changes) + "\n")
    page = draw(tmp_path / "run")
    assert "base 24" in page and "train.log_every" in page


def test_at_most_eight_previews_are_shown_including_the_newest(folder):
    (folder / "samples").mkdir()
    for step in range(1, 31):
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / "samples" / f"base_{step:07d}.png")
    shown = [step for step, _ in find_previews(folder, "base")]
    assert len(shown) == 8 and shown[-1] == 30 and shown == sorted(shown)


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "metrics.jsonl: no such file"),
        ("", "no metrics yet"),
        ("no json\n" + training(1), "metrics.jsonl, line 1: not a JSON object"),
        (training(1) + training(2, loss="high"), 'line 2: loss="high"'),
        (training(1) + line("two", loss=1.0), 'line 2: step="two"'),
    ],
)
def test_invalid_metrics_are_reported_in_one_line(folder, text, message):
    if text is None:
        (folder / "metrics.jsonl").unlink()
    else:
        (folder / "metrics.jsonl").write_text(text)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        draw(folder)
    assert "\n" not in str(error.value) and not Path(folder / "report.html").exists()
