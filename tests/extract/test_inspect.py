"""The summary of a dataset that `extract.inspect` prints and draws."""

import numpy as np
import pytest
from PIL import Image
from recordings import write_clip

from extract import inspect
from slf_common.errors import UserError
from tfrecords import writer
from tfrecords.schema import CONTINUOUS, Constituent, Schema


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Three training clips of two people and one test clip; one clip lacks the constituent `a`."""
    out = tmp_path_factory.mktemp("inspected")
    schema = Schema(
        (Constituent("a", 4, 3, CONTINUOUS, "maker 1.0", "abcd", "0.5/0.3 s"), Constituent("b", 1, 5, CONTINUOUS))
    )
    face = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    clips = [
        {"clip_id": "x/1", "speaker_id": "x", "age": 34.0, "gender": 0},
        {"clip_id": "x/2", "speaker_id": "x", "age": 39.9, "gender": 0},
        {"clip_id": "y/1", "speaker_id": "y"},
    ]
    full = {"face": face, "a": np.ones((4, 3)), "b": np.ones((1, 5))}
    records = [full | clips[0], full | clips[1] | {"a": np.full((4, 3), np.nan)}, full | clips[2]]
    failures = [{"clip": "z/1", "reason": "the file is empty"}]
    writer.write_shard(out / writer.shard_name("train", 0, 1), schema, records, failures)
    writer.write_shard(
        out / writer.shard_name("test", 0, 1), schema, [full | {"clip_id": "t/1", "speaker_id": "t", "gender": 1}]
    )
    writer.finalise(out, schema, {"train": 1, "test": 1}, {"faces": {"detector": "opencv"}})
    return out


def test_counts_attributes_missing_rows_and_failures(dataset, tmp_path, capsys):
    inspect.main(["--data", str(dataset), "--out", str(tmp_path / "new" / "all.png")])
    printed = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "4 clips" in printed[0]
    for line in (
        "train 3 clips 2 speakers 1 shards",
        "test 1 clips 1 speakers 1 shards",
        "age unknown 2, 30-39 2",
        "gender unknown 1, female 2, male 1",
        "language unknown 4",
        "a 4 x 3 25.00% maker 1.0; 0.5/0.3 s; abcd",
        "b 1 x 5 0.00%",
        "faces: opencv",
        "failed: 1 clips",
        "1 the file is empty",
    ):
        assert line in printed
    with Image.open(tmp_path / "new" / "all.png") as figure:
        assert figure.size > (800, 800) and np.asarray(figure.convert("L")).std() > 10


def test_a_clip_can_be_selected(dataset, tmp_path):
    inspect.main(["--data", str(dataset), "--out", str(tmp_path / "a.png"), "--clip", "x/1"])
    inspect.main(["--data", str(dataset), "--out", str(tmp_path / "b.png"), "--clip", "x/2"])
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--clip", "z/9"), "no clip 'z/9' among the 3"),
        (("--split", "validation"), "no clips in split 'validation'; it has train, test"),
    ],
)
def test_mistakes_are_reported_and_no_figure_is_written(dataset, tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        inspect.main(["--data", str(dataset), "--out", str(tmp_path / "a.png"), *flags])
    assert not list(tmp_path.iterdir())


def test_a_folder_without_a_dataset_is_reported(tmp_path):
    write_clip(tmp_path / "a.mp4")
    with pytest.raises(UserError, match=f"{tmp_path}: no dataset here"):
        inspect.main(["--data", str(tmp_path), "--out", str(tmp_path / "a.png")])


@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_dataset_without_training_clips_can_be_extracted_and_inspected(tmp_path, extract, capsys, split):
    """A folder without training clips was rejected (fault 9)."""
    for i in range(3):
        write_clip(tmp_path / "videos" / f"id0001{i}" / "a" / "1.mp4", pitch=90 + 40 * i)
    people = "".join(f"id0001{i},{split}\n" for i in range(3))
    (tmp_path / "videos" / "people.csv").write_text(f"speaker_id,split\n{people}")
    for part in ("0/2", "1/2"):
        extract("--videos", tmp_path / "videos", "--out", tmp_path / "data", "--shard-range", part)
    printed = capsys.readouterr().out
    assert f"3 {split}" in printed and "no training split" in printed
    inspect.main(["--data", str(tmp_path / "data"), "--out", str(tmp_path / "a.png")])
    assert f"{split} 3 clips 3 speakers 2 shards" in " ".join(capsys.readouterr().out.split())
    with Image.open(tmp_path / "a.png") as figure:
        assert np.asarray(figure.convert("L")).std() > 10
