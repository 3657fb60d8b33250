"""The table of people: what it says of a clip, its mistakes, and splits by speaker."""

from pathlib import Path

import pytest
from recordings import voice, write_clip, write_image, write_wav

from extract import pipeline
from extract.attributes import People, hashed_split, read_list, read_people
from extract.media import Clip
from slf_common.errors import UserError
from tfrecords.reader import Clips
from tfrecords.schema import LABELS, UNKNOWN


@pytest.mark.parametrize(
    "table, message",
    [
        ("", "table is empty"),
        ("age,gender\n3,male\n", "line 1: there is no column speaker_id"),
        ("speaker_id,sex\n", "line 1: column 'sex' is none of: speaker_id"),
        ("speaker_id,Age,AGE\n", "line 1: column 'age' stands there twice"),
        ("speaker_id,age\na,old\n", "line 2: age 'old' is not a number"),
        ("speaker_id,age\na,200\n", "line 2: age '200' is not between"),
        ("speaker_id,age\na,nan\n", "line 2: age 'nan' is not between"),
        ("speaker_id,age\na,3,4\n", "line 2: 3 cells, but the first line names 2"),
        ("speaker_id,age\n,3\n", "line 2: speaker_id is empty"),
        ("speaker_id,language\na,klingon\n", "line 2: language 'klingon' is none of: arabic"),
        ("speaker_id,split\na,dev\n", "line 2: split 'dev' is none of: train, validation, test"),
        ("speaker_id,age\na,1\n\na,1\n", "line 4: a second row for speaker 'a'"),
        ("speaker_id,clip_id\na,x\nb,x\n", "line 3: a second row for clip 'x'"),
        ("speaker_id,clip_id,split\na,x,train\na,y,test\n", "line 3: speaker 'a' is in split 'train' above"),
        ("speaker_id,age\n\xff,1\n", "not UTF-8"),
    ],
)
def test_mistakes_in_the_table_are_told_with_their_line(tmp_path, table, message):
    path = tmp_path / "people.csv"
    path.write_bytes(table.encode("latin-1"))
    with pytest.raises(UserError, match=f"people.csv.*{message}"):
        read_people(path).index_languages(LABELS["language"])


def test_a_clips_own_row_goes_before_its_speakers(tmp_path):
    path = tmp_path / "people.csv"
    path.write_text("\ufeffSpeaker_ID,clip_id,age,Gender\nann,,30,Female\nann,x/1,31,\nbob,x/2,,MALE\n")
    people = read_people(path)
    first, second, other = (people.identify(Clip(clip_id, "ann", Path("v.mp4"))) for clip_id in ("x/1", "x/2", "x/3"))
    female, male = LABELS["gender"].index("female"), LABELS["gender"].index("male")
    assert people.attributes(first) == {"age": 31, "gender": female}
    assert second.speaker_id == "bob" and people.attributes(second) == {"gender": male}
    assert people.attributes(other) == {"age": 30, "gender": female}
    assert people.attributes(Clip("y", "eve", Path("v.mp4"))) == {}


def test_speakers_never_share_splits_and_shares_are_near_90_5_5():
    clips = [Clip(f"id{i % 2000}/{i}", f"id{i % 2000}", Path("v.mp4")) for i in range(4000)]
    chunks = pipeline.make_chunks(clips, People(), 64)
    assert sorted(clip.clip_id for chunk in chunks for clip in chunk.clips) == sorted(clip.clip_id for clip in clips)
    speakers = {
        split: {clip.speaker_id for chunk in chunks if chunk.split == split for clip in chunk.clips}
        for split in ("train", "validation", "test")
    }
    assert sum(map(len, speakers.values())) == 2000
    for split, share in (("train", 0.9), ("validation", 0.05), ("test", 0.05)):
        assert len(speakers[split]) / 2000 == pytest.approx(share, abs=0.02)


def test_a_speakers_split_stays_as_it_is():
    # Another hash would move people between the splits of datasets that exist.
    assert [hashed_split(f"id{i:05d}") for i in (0, 4, 7, 27, 31)] == [
        "train", "validation", "test", "validation", "test",
    ]  # fmt: skip


def test_an_empty_training_split_is_refused_before_any_work(tmp_path, extract):
    write_clip(tmp_path / "videos" / "a" / "1.mp4")
    (tmp_path / "videos" / "people.csv").write_text("speaker_id,split\na,TEST\n")
    with pytest.raises(UserError, match="training split is empty"):
        extract("--videos", tmp_path / "videos", "--out", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_table_of_other_people_is_refused(people_folder, tmp_path, extract):
    table = tmp_path / "people.csv"
    table.write_text("speaker_id,age\nID0,20\n")
    with pytest.raises(UserError, match=r"none of its rows.*'id0'"):
        extract("--videos", people_folder, "--out", tmp_path / "data", f"--config.extract.attributes={table}")


def write_list(folder: Path, *rows: str) -> Path:
    path = folder / "list.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def test_a_list_names_clips_speakers_and_attributes(tmp_path):
    video = write_clip(tmp_path / "far" / "b.mp4")
    write_clip(tmp_path / "x" / "a, b.mp4")
    write_wav(tmp_path / "x" / "c.wav", voice(1))
    write_image(tmp_path / "x" / "c.png")
    clips, people = read_list(
        write_list(
            tmp_path,
            "speaker_id,path,clip_id,age,language,split",
            'ann,"x/a, b.mp4",,31,English,train',
            f"bob,{video},bobs,,,",
            "ann,./x/c.wav,,,,train",
        )
    )
    assert [(clip.clip_id, clip.speaker_id) for clip in clips] == [("bobs", "bob"), ("x/a, b", "ann"), ("x/c", "ann")]
    assert clips[0].path == video and clips[2].image == tmp_path / "x" / "c.png"
    people.index_languages(("german", "english"))
    assert [people.attributes(clip) for clip in clips] == [{}, {"age": 31, "language": 1}, {}]
    assert people.split("ann") == "train"


@pytest.mark.parametrize(
    "rows, message",
    [
        (("speaker_id,age",), "line 1: there is no column path"),
        (("path,speaker_id", ",a"), "line 2: path is empty"),
        (("path,speaker_id", "there.mp4,"), "line 2: speaker_id is empty"),
        (("path,speaker_id", "there.mp4,a", "nowhere.mp4,a"), "line 3: no such file: .*nowhere.mp4"),
        (("path,speaker_id", "list.csv,a"), "line 2: .*list.csv: neither a video"),
        (("path,speaker_id", "there.mp4,a", "./there.mp4,b"), "line 3: a second row for clip 'there'"),
        (("path,speaker_id,gender", "there.mp4,a,x"), "line 2: gender 'x' is none of"),
    ],
)
def test_mistakes_in_a_list_are_told_with_their_line(tmp_path, rows, message):
    (tmp_path / "there.mp4").touch()
    with pytest.raises(UserError, match=f"list.csv, {message}"):
        read_list(write_list(tmp_path, *rows))


def test_a_dataset_from_a_list(tmp_path, extract):
    write_clip(tmp_path / "v" / "a.mp4")
    write_clip(tmp_path / "v" / "b.mp4", pitch=200)
    table = write_list(tmp_path, "path,speaker_id,gender,split", "v/a.mp4,ann,female,train", "v/b.mp4,bob,,test")
    extract("--videos", table, "--out", tmp_path / "data")
    (ann,), (bob,) = ([Clips(tmp_path / "data", split)[0]] for split in ("train", "test"))
    assert (ann["clip_id"], ann["speaker_id"], ann["gender"]) == ("v/a", "ann", LABELS["gender"].index("female"))
    assert (bob["clip_id"], bob["gender"]) == ("v/b", UNKNOWN)
    with pytest.raises(UserError, match="leave config.extract.attributes empty"):
        extract("--videos", table, "--out", tmp_path / "other", "--config.extract.attributes=people.csv")
