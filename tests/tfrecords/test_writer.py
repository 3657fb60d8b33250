import json

import numpy as np
import pytest
from records import make_clip

from slf_common.errors import UserError
from tfrecords import writer
from tfrecords.reader import Clips, first_split


def test_statistics_are_those_of_the_training_split(dataset, schema):
    clips = Clips(dataset, "train")
    for part in schema.constituents:
        rows = np.concatenate([clips[i][part.name] for i in range(len(clips))]).astype(np.float64)
        np.testing.assert_allclose(clips.statistics[part.name]["mean"], rows.mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(clips.statistics[part.name]["std"], rows.std(0), rtol=1e-4)


def test_missing_values_do_not_count(tmp_path, schema):
    whole, without = make_clip(0), {k: v for k, v in make_clip(1).items() if k != "mel"}
    writer.write_shard(tmp_path / writer.shard_name("train", 0, 1), schema, [whole, without])
    writer.finalise(tmp_path, schema, {"train": 1})
    mean = Clips(tmp_path).statistics["mel"]["mean"]
    np.testing.assert_allclose(mean, whole["mel"].astype(np.float16).mean(0, dtype=float), rtol=1e-4)


def test_a_constant_feature_has_unit_std(tmp_path, schema):
    clip = make_clip(0)
    clip["pyaudioanalysis"][:, 5] = 7.0
    writer.write_shard(tmp_path / writer.shard_name("train", 0, 1), schema, [clip])
    writer.finalise(tmp_path, schema, {"train": 1})
    assert Clips(tmp_path).statistics["pyaudioanalysis"]["std"][5] == 1.0


def test_an_interrupted_shard_leaves_no_files(tmp_path, schema):
    path = tmp_path / writer.shard_name("train", 0, 1)

    def clips():
        yield make_clip(0)
        raise OSError("disk full")

    with pytest.raises(OSError):
        writer.write_shard(path, schema, clips())
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_finalising_twice_changes_nothing(dataset, schema):
    names = ("dataset_info.json", "features.json", "metadata.json")
    before = {name: (dataset / name).read_bytes() for name in names}
    counts = writer.finalise(dataset, schema, {"train": 2, "validation": 1, "test": 1})
    assert counts == {"train": 24, "validation": 6, "test": 6}
    assert before == {name: (dataset / name).read_bytes() for name in names}


def test_failures_are_stored_with_their_reasons(tmp_path, schema):
    path = tmp_path / writer.shard_name("train", 0, 1)
    failure = {"clip": "a/b", "reason": "no audio stream"}
    writer.write_shard(path, schema, [make_clip(0)], [failure])
    assert json.loads(writer.summary_path(tmp_path, path.name).read_text())["failures"] == [failure]


@pytest.mark.parametrize(
    "shards", [{"test": 1}, {"train": 1, "test": 1}], ids=["no training split", "none of its clips"]
)
def test_there_are_no_statistics_without_training_clips(tmp_path, schema, shards):
    """Placeholders such as mean 0 and std 1 would be taken for real ones."""
    for split in shards:
        clips = [make_clip(i, split) for i in range(2) if split == "test"]
        writer.write_shard(tmp_path / writer.shard_name(split, 0, 1), schema, clips)
    assert writer.finalise(tmp_path, schema, shards)["test"] == 2
    assert json.loads((tmp_path / "metadata.json").read_text())["statistics"] is None
    assert Clips(tmp_path, "test").statistics is None and first_split(tmp_path) == "test"
    with pytest.raises(UserError, match="no clips in split 'train'; it has test"):
        Clips(tmp_path, "train")


def test_statistics_of_one_clip(schema):
    clip = make_clip(0)
    clip["mel"][3] = np.nan
    found = writer.clip_statistics(schema, clip)["mel"]
    rows = np.delete(clip["mel"], 3, 0).astype(np.float16).astype(float)
    np.testing.assert_allclose(found["mean"], rows.mean(0), rtol=1e-3)
    np.testing.assert_allclose(found["std"], rows.std(0), rtol=1e-3)
