"""The command app.draw: its files, their metadata, and mistakes."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from app import draw
from slf_common import cli
from slf_common.errors import UserError
from slf_jax.inference.trained import PRETRAINED


def run(*flags):
    draw.main([str(flag) for flag in flags])


def test_faces_and_contact_sheet_say_how_they_were_made(voice, picture, tmp_path, capsys):
    run("--voice", voice, "--thumbnail", picture, "--age", 34, "--gender", "Female", "--scales", "0,4:1",
        "--samples", 2, "--seed", 7, "--out", tmp_path)  # fmt: skip
    assert str(tmp_path) in capsys.readouterr().out
    names = {"voice_scale0_00.png", "voice_scale0_01.png", "voice_scale4-1_00.png", "voice_scale4-1_01.png"}
    assert {path.name for path in tmp_path.iterdir()} == names | {draw.SHEET}
    with Image.open(tmp_path / "voice_scale4-1_01.png") as face:
        notes = dict(face.text)
        assert face.size == (128, 128)
    assert notes["synthetic"].startswith("yes") and notes["scale"] == "4:1" and notes["seed"] == "7"
    assert notes["voice"] == "voice.wav, 3.0 s" and notes["thumbnail"] == "picture.png" and notes["sample"] == "1"
    assert notes["age"] == "34.0" and notes["gender"] == "Female" and "base " in notes["checkpoints"]
    with Image.open(tmp_path / draw.SHEET) as sheet:
        assert sheet.size == (3 * 130, 20 + 2 * 130)  # thumbnail and two scales; two samples


@pytest.mark.slow
def test_without_a_voice(picture, tmp_path):
    run("--thumbnail", picture, "--ethnicity", "asian", "--scales", "1", "--out", tmp_path)
    with Image.open(tmp_path / "face_scale1.png") as face:
        assert face.text["voice"] == "none" and face.text["ethnicity"] == "asian"


@pytest.mark.slow
def test_each_recording_of_a_folder_gets_a_folder(voice, tmp_path, capsys):
    """An unusable one is reported and skipped."""
    recordings = tmp_path / "in"
    recordings.mkdir()
    for name in ("one.wav", "two.wav"):
        shutil.copy(voice, recordings / name)
    (recordings / "broken.wav").write_text("not a sound")
    run("--voice", recordings, "--scales", "2", "--out", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"one", "two"}
    faces = [np.asarray(Image.open(tmp_path / "out" / name / f"{name}_scale2.png")) for name in ("one", "two")]
    assert np.array_equal(*faces)  # the same voice and seed
    assert f"skipped: {recordings / 'broken.wav'}: " in capsys.readouterr().err
    for name in ("one.wav", "two.wav"):
        (recordings / name).write_text("")
    with pytest.raises(UserError, match="none of the 3 recordings could be used"):
        run("--voice", recordings, "--out", tmp_path / "none")


def test_other_weights_are_refused_unless_allowed(voice, tmp_path, capsys):
    """And then named in the metadata."""
    other = tmp_path / "other"
    shutil.copytree(PRETRAINED, other)
    config = json.loads((other / "config.json").read_text())
    for part in config["schema"]["constituents"]:
        part["weights"] = "0123456789abcdef" if part["name"] == "mel" else part["weights"]
    (other / "config.json").write_text(json.dumps(config))
    flags = ("--workdir", other, "--voice", voice, "--scales", "1", "--out", tmp_path / "out")
    with pytest.raises(UserError, match="mel: weights none, but .* with 0123456789abcdef.*--allow-other-weights"):
        run(*flags)
    run(*flags, "--allow-other-weights")
    with Image.open(tmp_path / "out" / "voice_scale1.png") as face:
        assert "mel: weights none, trained with 0123456789abcdef" in face.text["weights"]


@pytest.mark.parametrize(
    "flags, reason",
    [
        ([], "nothing to draw from"),
        (["--voice", "none.wav"], "none.wav: no such file"),
        (["--thumbnail", "none.png"], "none.png: cannot be read"),
        (["--face", "--age", "3"], "--face: give the picture"),
        (["--age", "3", "--samples", "0"], "--samples 0: give at least 1"),
        (["--age", "3", "--scales", "-1"], "--scales -1: a guidance scale"),
        (["--age", "3", "--config.model.dtype=x"], "--config.model.dtype: only --config.sample"),
        (["--age", "3", "--weights", "ecapa"], "--weights ecapa: must be NAME=PATH"),
        (["--age", "3", "--workdir", "hf://me"], "hf://me: must be hf://owner/name"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(flags, reason, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        cli.run(lambda: run(*flags, "--out", tmp_path / "out"))
    error = capsys.readouterr().err.strip()
    assert end.value.code == 2 and error.startswith(f"error: {reason}") and "\n" not in error
    assert not (tmp_path / "out").exists()
