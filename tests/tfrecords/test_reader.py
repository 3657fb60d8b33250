import itertools
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import fsspec
import numpy as np
import pytest
from records import make_clip

from slf_common import files
from slf_common.errors import UserError
from tfrecords import codec, reader, writer
from tfrecords.index import Index
from tfrecords.reader import Clips, batches
from tfrecords.schema import Constituent, Schema


def ages(stream, count):
    """The ages of all clips in `count` batches. An age identifies its clip: 20 + number."""
    return np.concatenate([batch["age"] for batch in itertools.islice(stream, count)])


def test_an_epoch_has_every_clip_once_and_epochs_differ(dataset):
    seen = ages(batches(Clips(dataset), 4, seed=1), 12)
    first, second = seen[:24], seen[24:]
    assert sorted(first) == sorted(second) == [20.0 + i for i in range(24)]
    assert list(first) != list(second)


def test_the_shuffle_is_global(dataset):
    first = ages(batches(Clips(dataset), 12, seed=1), 1)
    assert {bool(age >= 32) for age in first} == {True, False}  # both shards in one batch


def test_the_order_depends_on_the_seed(dataset):
    streams = [ages(batches(Clips(dataset), 4, seed=seed), 6).tolist() for seed in (1, 1, 2)]
    assert streams[0] == streams[1] != streams[2]


@pytest.mark.parametrize("threads", [1, 2])
def test_batches_resume_exactly_at_any_batch(dataset, threads):
    whole = list(itertools.islice(batches(Clips(dataset), 5, seed=3), 9))
    rest = list(itertools.islice(batches(Clips(dataset), 5, seed=3, start=4, threads=threads), 5))
    for expected, found in zip(whole[4:], rest, strict=True):
        for key in expected:
            np.testing.assert_array_equal(expected[key], found[key])


@pytest.mark.parametrize("count, local", [(1, 8), (2, 4), (3, 2), (3, 5)])
def test_processes_share_each_batch_and_each_epoch(dataset, count, local):
    whole = ages(batches(Clips(dataset), count * local, seed=5), 6)
    parts = [ages(batches(Clips(dataset), local, seed=5, process=(i, count)), 6) for i in range(count)]
    assert [part[k] for k in range(6 * local) for part in parts] == whole.tolist()


def test_a_split_shorter_than_a_batch_is_refused(dataset):
    with pytest.raises(UserError, match=r"records: 24 clips, fewer than a batch of 26; .*config.train.batch_size"):
        batches(Clips(dataset), 13, seed=0, process=(0, 2))


@pytest.fixture
def many_shards(tmp_path):
    """A thousand shards of one clip."""
    schema = Schema((Constituent("mel", 1, 4, "continuous"),))
    for i in range(1000):
        clip = {**make_clip(i), "mel": np.ones((1, 4))}
        writer.write_shard(tmp_path / writer.shard_name("train", i, 1000), schema, [clip])
    writer.finalise(tmp_path, schema, {"train": 1000})
    return tmp_path


def test_a_thousand_shards_need_few_open_files_and_are_indexed_once(many_shards, monkeypatch):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 60, hard))
    try:
        stream = batches(Clips(many_shards), 50, seed=0, threads=2)
        seen = ages(stream, 20)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert sorted(seen) == [20.0 + i for i in range(1000)]
    monkeypatch.setattr(reader, "index_shard", None)  # not called again
    assert len(Clips(many_shards)) == 1000


def test_an_index_of_other_shards_is_made_again(dataset, tmp_path):
    shutil.copytree(dataset, tmp_path, dirs_exist_ok=True)
    index, expected = tmp_path / "slf-train.index.npz", Clips(tmp_path)[13]["clip_id"]
    whole, shards = index.read_bytes(), [tmp_path / writer.shard_name("train", i, 2) for i in range(2)]

    def swap():
        first, second = (path.read_bytes() for path in shards)
        assert len(first) != len(second)
        shards[0].write_bytes(second)
        shards[1].write_bytes(first)

    for spoil in (
        index.unlink,
        lambda: index.write_bytes(b"no archive"),
        lambda: index.write_bytes((dataset / "slf-test.index.npz").read_bytes()),
    ):
        spoil()
        clips = Clips(tmp_path)
        assert clips[13]["clip_id"] == expected and clips.find(expected)["age"] == 33
        assert index.read_bytes() == whole
    swap()
    assert Clips(tmp_path).find(expected)["clip_id"] == Clips(tmp_path)[1]["clip_id"] == expected


def test_a_read_only_folder_can_be_read(dataset, tmp_path, monkeypatch):
    shutil.copytree(dataset, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.npz"))

    def refuse(*_):
        raise PermissionError("read-only")  # as the system would, except for the superuser

    monkeypatch.setattr(files, "write_atomically", refuse)
    assert len(Clips(tmp_path)) == 24 and not list(tmp_path.glob("*.npz"))


def test_a_dataset_in_a_bucket_can_be_read(dataset, monkeypatch):
    """The in-memory file system of fsspec stands for a bucket. The index is valid for a copy: no headers are read."""
    store = fsspec.filesystem("memory")
    store.put(str(dataset), "/bucket/records", recursive=True)
    monkeypatch.setattr(reader, "index_shard", None)
    far, near = Clips("memory://bucket/records"), Clips(dataset)
    assert str(far.directory) == "memory://bucket/records"
    for a, b in zip(itertools.islice(batches(far, 8, seed=1), 4), batches(near, 8, seed=1), strict=False):
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])
    with pytest.raises(UserError, match="memory://nothing: no dataset here"):
        Clips("memory://nothing")
    store.rm("/bucket", recursive=True)


def test_a_missing_package_for_a_bucket_is_reported_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"gs://bucket/data: .*\[cloud\]"):
        Clips("gs://bucket/data")


@pytest.fixture
def copied(dataset, tmp_path):
    """A copy of the dataset without its indices."""
    shutil.copytree(dataset, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.npz"))
    return tmp_path


def test_a_clip_is_found_by_reading_its_record_alone(dataset, monkeypatch):
    clips, reads, here = Clips(dataset), [], threading.get_ident()
    read = reader.open_frame

    def count(data, name, record):
        if threading.get_ident() == here:  # readers of other tests may still prefetch
            reads.append(record)
        return read(data, name, record)

    monkeypatch.setattr(reader, "open_frame", count)
    monkeypatch.setattr(reader, "decode_names", None)  # not called
    assert list(clips.names()) == [(f"train{i}/00000/00001", f"train{i}") for i in range(24)] and not reads
    assert clips.find("train17/00000/00001")["age"] == 37 and reads == [5]
    with pytest.raises(UserError, match="no clip 'missing' among the 24"):
        clips.find("missing")
    assert clips.find(None)["age"] == 20 and reads == [5, 0]


def test_an_index_without_ids_is_made_again_once(dataset, copied, capsys, monkeypatch):
    """As after an earlier version, or if the index is lost: it becomes the one that the writer made."""
    assert len(Clips(copied)) == 24 and not capsys.readouterr().err
    index = copied / "slf-train.index.npz"
    assert index.read_bytes() != (dataset / index.name).read_bytes()
    assert Clips(copied).find("train17/00000/00001")["age"] == 37
    assert capsys.readouterr().err == f"note: {index}: reading the ids of 24 records once, to index them\n"
    assert index.read_bytes() == (dataset / index.name).read_bytes()
    monkeypatch.setattr(reader, "decode_names", None)
    assert list(Clips(copied).names()) == list(Clips(dataset).names()) and not capsys.readouterr().err


def test_only_wanted_fields_are_decoded(dataset, monkeypatch):
    clips = Clips(dataset)
    whole = clips[3]
    face = clips.read(3, ("clip_id", "face", "face_embedding"))  # this dataset has no embeddings
    assert set(face) == {"clip_id", "face"} and face["clip_id"] == whole["clip_id"]
    np.testing.assert_array_equal(face["face"], whole["face"])
    monkeypatch.setattr(codec, "Image", None)
    monkeypatch.setattr(codec.np, "frombuffer", None)
    assert clips.read(3, ("age", "gender")) == {"age": whole["age"], "gender": whole["gender"]}


def test_a_found_clip_is_checked(dataset, damaged):
    """Its CRC, and that it has the id by which it was found."""
    names, clips = list(Clips(dataset).names()), Clips(damaged.parent, skip_corrupt=True)
    for i in range(12, 24):
        clips[i]
    (bad,) = clips.corrupt
    with pytest.raises(UserError, match="is damaged"):
        Clips(damaged.parent).find(names[bad][0])
    sizes = {
        name: (damaged.parent / name).stat().st_size for name in (writer.shard_name("train", i, 2) for i in (0, 1))
    }
    swapped = Index.load((dataset / "slf-train.index.npz").read_bytes(), sizes).with_ids(names[::-1])
    (damaged.parent / "slf-train.index.npz").write_bytes(swapped.save(sizes))
    with pytest.raises(UserError, match="index.npz: has clip 'train0/00000/00001' where the shard has 'train23/00000"):
        Clips(damaged.parent).find("train0/00000/00001")


def test_a_folder_without_a_dataset_is_reported_with_how_to_make_one(tmp_path):
    with pytest.raises(UserError, match="extract.run.*make demo"):
        Clips(tmp_path)


def test_an_unknown_split_is_reported_with_the_existing_ones(dataset):
    with pytest.raises(UserError, match="train, validation, test"):
        Clips(dataset, "dev")


def test_a_missing_shard_is_reported(dataset, tmp_path):
    for path in dataset.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="slf-train.tfrecord-00000-of-00002: shard is missing"):
        Clips(tmp_path)


@pytest.fixture
def damaged(dataset, tmp_path):
    """The dataset with one flipped bit in a record of its second shard."""
    shutil.copytree(dataset, tmp_path, dirs_exist_ok=True)
    path = tmp_path / writer.shard_name("train", 1, 2)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return path


def test_damage_is_reported_with_file_and_record_while_training(damaged):
    with pytest.raises(UserError, match=rf"{damaged.name}: record \d+ is damaged.*config.data.skip_corrupt=true"):
        for _ in itertools.islice(batches(Clips(damaged.parent), 4, seed=0), 6):
            pass


def test_damaged_records_can_be_skipped_and_are_counted(dataset, damaged, capsys):
    clips = Clips(damaged.parent, skip_corrupt=True)
    seen = ages(batches(clips, 4, seed=0), 12)
    (bad,) = clips.corrupt
    whole = Clips(dataset)
    assert len(seen) == 48 and whole[bad]["age"] not in seen
    assert clips[bad]["clip_id"] == whole[(bad + 1) % 24]["clip_id"]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("warning: ") and f"{damaged.name}: record {bad - 12} is" in lines[0]


def test_complete_records_of_a_truncated_shard_can_be_read(dataset, damaged, capsys):
    damaged.write_bytes((dataset / damaged.name).read_bytes()[:-10])
    with pytest.raises(UserError, match=f"{damaged.name}: truncated in record 11"):
        Clips(damaged.parent)
    clips = Clips(damaged.parent, skip_corrupt=True)
    assert len(clips) == 24 and clips[23]["age"] == Clips(dataset)[0]["age"]
    assert clips.corrupt == {23} and "record 11 is missing, the file is truncated" in capsys.readouterr().err
    assert clips[22]["age"] == 42


@pytest.mark.frameworks
def test_reading_and_training_import_neither_tensorflow_nor_torch(dataset):
    code = (
        "import sys, slf_jax.train, slf_jax.sweep; from tfrecords.reader import *;"
        f"next(batches(Clips({str(dataset)!r}), 2, seed=0));"
        "print(sorted({'tensorflow', 'torch', 'extract', 'librosa'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_threads_that_decode_their_first_records_together_do_not_deadlock(dataset):
    """Decoding imports TFDS, whose lazy imports use locks of their own."""
    code = (
        "import sys; from concurrent.futures import ThreadPoolExecutor; from tfrecords.reader import Clips;"
        f"clips = Clips({str(dataset)!r}); sys.setswitchinterval(1e-5);"
        "print(len(list(ThreadPoolExecutor(8).map(clips.__getitem__, range(24)))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=400)
    assert done.stdout == "24\n", done.stderr


def truncate(path):
    """Removes the last bytes of a file."""
    path.write_bytes(path.read_bytes()[:-7])


def damage(folder, what):
    """Damages a copy of the dataset in one way."""
    shard = folder / writer.shard_name("validation", 0, 1)
    {
        "shard truncated": lambda: truncate(shard),
        "shard missing": shard.unlink,
        "shard is a folder": lambda: (shard.unlink(), shard.mkdir()),
        "metadata truncated": lambda: truncate(folder / "metadata.json"),
        "metadata missing": (folder / "metadata.json").unlink,
        "metadata empty": lambda: (folder / "metadata.json").write_text("{}"),
        "info missing": (folder / "dataset_info.json").unlink,
        "info of another kind": lambda: (folder / "dataset_info.json").write_text("[1]"),
        "info not UTF-8": lambda: (folder / "dataset_info.json").write_bytes(b"\xff\xfe"),
        "info is a folder": lambda: ((folder / "dataset_info.json").unlink(), (folder / "dataset_info.json").mkdir()),
    }[what]()


@pytest.mark.parametrize(
    "what",
    ["shard truncated", "shard missing", "shard is a folder", "metadata truncated", "metadata missing",
     "metadata empty", "info missing", "info of another kind", "info not UTF-8", "info is a folder"],
)  # fmt: skip
def test_a_damaged_split_is_not_reported_as_absent(dataset, tmp_path, what):
    shutil.copytree(dataset, tmp_path / "copy", ignore=shutil.ignore_patterns("*.npz"))
    damage(tmp_path / "copy", what)
    with pytest.raises(UserError) as error:
        Clips(tmp_path / "copy", "validation")
    assert not isinstance(error.value, reader.Absent) and "\n" not in str(error.value)


@pytest.mark.parametrize("folder, split", [("", "valid"), ("nowhere", "train"), ("metadata.json", "train")])
def test_a_missing_split_or_dataset_is_reported_as_absent(dataset, folder, split):
    with pytest.raises(reader.Absent, match="no clips in split 'valid'; it has|no dataset here"):
        Clips(dataset / folder, split)
