import itertools
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tfrecords.cli import UserError
from tfrecords.reader import Clips, batches


def ages(stream, count):
    """The clips' ages name them: 20 + number."""
    return np.concatenate([batch["age"] for batch in itertools.islice(stream, count)])


def test_an_epoch_holds_every_clip_once_and_epochs_differ(dataset):
    seen = ages(batches(Clips(dataset), 4, seed=1), 12)
    first, second = seen[:24], seen[24:]
    assert sorted(first) == sorted(second) == [20.0 + i for i in range(24)]
    assert list(first) != list(second)


def test_the_shuffle_is_global(dataset):
    first = ages(batches(Clips(dataset), 12, seed=1), 1)
    assert {bool(age >= 32) for age in first} == {True, False}  # both shards in one batch


def test_the_seed_decides_the_order(dataset):
    streams = [ages(batches(Clips(dataset), 4, seed=seed), 6).tolist() for seed in (1, 1, 2)]
    assert streams[0] == streams[1] != streams[2]


@pytest.mark.parametrize("threads", [1, 2])
def test_reopened_at_a_batch_it_goes_on_exactly(dataset, threads):
    whole = list(itertools.islice(batches(Clips(dataset), 5, seed=3), 9))
    rest = list(itertools.islice(batches(Clips(dataset), 5, seed=3, start=4, threads=threads), 5))
    for expected, found in zip(whole[4:], rest, strict=True):
        for key in expected:
            np.testing.assert_array_equal(expected[key], found[key])


def test_processes_share_each_batch(dataset):
    whole = ages(batches(Clips(dataset), 8, seed=5), 6)
    parts = [ages(batches(Clips(dataset), 4, seed=5, process=(i, 2)), 6) for i in range(2)]
    for k in range(6):
        mine, theirs = (set(part[4 * k : 4 * k + 4]) for part in parts)
        assert mine.isdisjoint(theirs) and mine | theirs == set(whole[8 * k : 8 * k + 8])


def test_a_folder_without_a_dataset_says_how_to_make_one(tmp_path):
    with pytest.raises(UserError, match="extract.run.*make demo"):
        Clips(tmp_path)


def test_an_unknown_split_names_the_known(dataset):
    with pytest.raises(UserError, match="train, validation, test"):
        Clips(dataset, "dev")


def test_a_missing_shard_is_named(dataset, tmp_path):
    for path in dataset.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="slf-train.tfrecord-00000-of-00002: shard is missing"):
        Clips(tmp_path)


def test_damage_found_while_training_names_file_and_record(dataset, tmp_path):
    shutil.copytree(dataset, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "slf-train.tfrecord-00001-of-00002"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"{path.name}: record \d+ is damaged"):
        for _ in itertools.islice(batches(Clips(tmp_path), 4, seed=0), 6):
            pass


def test_reading_and_training_import_neither_tensorflow_nor_torch(dataset):
    code = (
        "import sys, slf_jax.train, slf_jax.sweep; from tfrecords.reader import *;"
        f"next(batches(Clips({str(dataset)!r}), 2, seed=0));"
        "print(sorted({'tensorflow', 'torch', 'extract', 'librosa'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
