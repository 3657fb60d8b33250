"""The attributes CSV and clip lists: matching, mistakes, values."""

import os
import unicodedata
from pathlib import Path

import pytest
from recordings import voice, write_clip, write_image, write_wav

from extract.attributes import hashed_split, read_attributes, read_clip_list
from extract.clips import Clip
from slf_common.errors import UserError
from tfrecords.reader import Clips
from tfrecords.schema import LABELS, UNKNOWN


@pytest.mark.parametrize(
    "table, message",
    [
        ("", "table is empty"),
        ("age,gender\n3,male\n", "line 1: the column speaker_id is missing"),
        ("speaker_id,gendre\n", "line 1: column 'gendre' must be one of speaker_id"),
        ("speaker_id,gender,sex\n", "line 1: column 'gender' appears twice"),
        ("VoxCeleb2 ID,Set\na,train\n", "line 2: set 'train' must be dev or test"),
        ("speaker_id,Age,AGE\n", "line 1: column 'age' appears twice"),
        ("speaker_id,age\na,old\n", "line 2: age 'old' is not a number"),
        ("speaker_id,age\na,200\n", "line 2: age '200' is not between"),
        ("speaker_id,age\na,nan\n", "line 2: age 'nan' is not between"),
        ("speaker_id,age\na,3,4\n", "line 2: 3 cells, but the header has 2"),
        ("speaker_id,age\n,3\n", "line 2: speaker_id is empty"),
        ("speaker_id,language\na,klingon\n", "line 2: language 'klingon' .*arabic"),
        ("speaker_id,split\na,dev\n", "line 2: split 'dev' must be one of train, validation, test"),
        ("speaker_id,age\na,1\n\na,1\n", "line 4: a second row for speaker 'a'"),
        ("speaker_id,clip_id\na,x\nb,x\n", "line 3: a second row for clip 'x'"),
        ("speaker_id,clip_id,split\na,x,train\na,y,test\n", "line 3: speaker 'a' is in split 'train' above"),
        ("speaker_id,age\n\xff,1\n", "not UTF-8"),
    ],
)
def test_mistakes_in_the_table_are_reported_with_their_line(tmp_path, table, message):
    path = tmp_path / "people.csv"
    path.write_bytes(table.encode("latin-1"))
    with pytest.raises(UserError, match=f"people.csv.*{message}"):
        read_attributes(path, [])[0].index_languages(LABELS["language"])


def test_a_clips_own_row_takes_precedence_over_its_speakers(tmp_path):
    path = tmp_path / "people.csv"
    path.write_text("\ufeffSpeaker_ID,clip_id,age,Gender\nann,,30,Female\nann,x/1,31,\nbob,x/2,,MALE\n")
    clips = [Clip(f"x/{number}", "ann", Path("v.mp4")) for number in (1, 2, 3)]
    table, notes = read_attributes(path, clips)
    assert notes == []
    first, second, other = map(table.identify, clips)
    female, male = LABELS["gender"].index("female"), LABELS["gender"].index("male")
    assert table.attributes(first) == {"age": 31, "gender": female}
    assert second.speaker_id == "bob" and table.attributes(second) == {"gender": male}
    assert table.attributes(other) == {"age": 30, "gender": female}
    assert table.attributes(Clip("y", "eve", Path("v.mp4"))) == {}


def test_a_speakers_split_never_changes():
    # A different hash would move people between the splits of existing datasets.
    assert [hashed_split(f"id{i:05d}") for i in (0, 4, 7, 27, 31)] == [
        "train", "validation", "test", "validation", "test",
    ]  # fmt: skip


def plan(folder: Path, extract, capsys, table: str, *clips: str) -> str:
    """Returns what a dry run prints for a folder of (unread) clips and a table."""
    for name in clips:
        (folder / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "videos" / name).write_text(name)
    (folder / "videos" / "people.csv").write_text(table)
    extract("--videos", folder / "videos", "--out", folder / "data", "--dry-run")
    return capsys.readouterr().out


def decomposed(text: str) -> str:
    return unicodedata.normalize("NFD", text)


@pytest.mark.parametrize(
    "cell, name",
    [
        ("José", decomposed("José/1.mp4")),
        (decomposed("José"), "José/1.mp4"),
        ("  ann\u00a0", "ann/1.mp4"),
        ("./ann/", "ann/1.mp4"),
        ("ann.mp4", "ann.mp4"),
        ("J. R. Smith", "J. R. Smith/1.mp4"),
    ],
)
def test_a_speaker_is_found_in_any_spelling(tmp_path, extract, capsys, cell, name):
    """A speaker in another Unicode normal form matched no one and was put in the training split (fault 4)."""
    printed = plan(tmp_path, extract, capsys, f"speaker_id,split\n{cell},test\n", name)
    assert "test: 1 clips of 1 speakers" in printed and "train: 0 clips" in printed and "no row" not in printed


@pytest.mark.parametrize(
    "cell", ["x/José.mp4", "x/José.MKV", "./x/José", r"x\José", r".\x\José.mp4", decomposed("x/José"), " x/José "]
)
def test_a_clip_is_found_in_any_spelling(tmp_path, extract, capsys, cell):
    """A clip_id with a file suffix or backslashes matched nothing (fault 4)."""
    printed = plan(tmp_path, extract, capsys, f"speaker_id,clip_id,split\nbob,{cell},test\n", decomposed("x/José.mp4"))
    assert "test: 1 clips of 1 speakers" in printed and "'bob'" in printed


@pytest.mark.parametrize(
    "rows, clips, message",
    [
        (
            ("1,test", "ann,train"),
            ("001/a.mp4", "ann/a.mp4"),
            "line 2: no speaker '1', but '001'",
        ),
        (("1.0,", "ann,"), ("001/a.mp4", "ann/a.mp4"), "line 2: no speaker '1.0', but '001'"),
        (("ANN,",), ("ann/a.mp4",), "line 2: no speaker 'ANN', but 'ann'"),
        (("ann,train", "bob,test"), ("ann/a.mp4", "rob/a.mp4"), "line 3: split 'test' for speaker 'bob', but there is"),
        (("eve,",), ("ann/a.mp4",), "no row matches .*'ann' and clip 'ann/a'"),
        (("José,test", decomposed("José") + ",test"), ("José/a.mp4",), "line 3: a second row for speaker 'José'"),
        (("ann,test", "./ann,test"), ("ann/a.mp4",), "line 3: a second row for speaker 'ann'"),
        (("ann,",), ("ann/a.mp4", "ann /a.mp4", "bob/a.mp4"), None),
        (("./ann,",), ("ann/a.mp4", "ann /a.mp4"), "line 2: './ann' is ambiguous: 'ann' or 'ann '"),
    ],
)
def test_similar_speaker_ids_are_rejected_with_both_spellings(tmp_path, extract, capsys, rows, clips, message):
    """A spreadsheet changed 001 to 1: the person, assigned to `test`, was silently trained on (fault 4)."""
    table = "\n".join(("speaker_id,split", *rows))
    if message is None:
        plan(tmp_path, extract, capsys, table, *clips)
        return
    with pytest.raises(UserError, match=f"people.csv(, |: ){message}") as error:
        plan(tmp_path, extract, capsys, table, *clips)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "rows, message",
    [
        (("ann,x/3,test", "ann,x/1,"), "line 2: split 'test' for clip 'x/3'"),
        (("ann,X/1,", "ann,x/2,"), "line 2: no clip 'X/1', but 'x/1'"),
        (("ann,x/1,", "ann,x/1.mp4,"), "line 3: a second row for clip 'x/1'"),
        (("X,x/1,",), "line 2: speaker 'X' and speaker 'x' would be two people"),
        (("Ann,x/1,", "ann,x/2,"), "line 2: speaker 'Ann' and speaker 'ann' would be two people"),
        (("07,x/1,", "7,x/2,"), "line 2: speaker '07' and speaker '7' would be two people"),
    ],
)
def test_similar_clip_ids_are_rejected_with_both_spellings(tmp_path, extract, capsys, rows, message):
    """One person under two spellings can end up in two splits (fault 4)."""
    with pytest.raises(UserError, match=f"people.csv, {message}"):
        plan(tmp_path, extract, capsys, "\n".join(("speaker_id,clip_id,split", *rows)), "x/1.mp4", "x/2.mp4")


def test_unmatched_rows_and_clips_are_counted_and_reported(tmp_path, extract, capsys):
    """If one row matched, all others were silently dropped (fault 4)."""
    table = "speaker_id,clip_id,age\nann,,30\n" + "".join(f"other{i},,40\n" for i in range(5)) + "ann,ann/9,31\n"
    printed = plan(tmp_path, extract, capsys, table, "ann/1.mp4", "bob/1.mp4", "bob/2.mp4", "eve/1.mp4")
    assert "people.csv: 6 rows match no clip: 'other0' (line 3), 'other1' (line 4), 'other2' (line 5), ..." in printed
    assert "people.csv: 3 clips of 2 speakers have no row, so it gives no attributes for them" in printed
    assert "and a hash chooses their split: 'bob', 'eve'" in printed


def test_a_matched_table_causes_no_notes_and_reaches_the_records(tmp_path, extract, capsys):
    write_clip(tmp_path / "videos" / decomposed("José") / "1.mp4")
    (tmp_path / "videos" / "people.csv").write_text("speaker_id,age,split\nJosé,40,train\n")
    extract("--videos", tmp_path / "videos", "--out", tmp_path / "data")
    record = Clips(tmp_path / "data")[0]
    assert (record["speaker_id"], record["clip_id"], record["age"]) == ("José", "José/1", 40)
    printed = capsys.readouterr().out
    assert "match no clip" not in printed and "no row" not in printed


def write_list(folder: Path, *rows: str) -> Path:
    path = folder / "list.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def test_a_list_names_clips_speakers_and_attributes(tmp_path):
    video = write_clip(tmp_path / "far" / "b.mp4")
    write_clip(tmp_path / "x" / "a, b.mp4")
    write_wav(tmp_path / "x" / "c.wav", voice(1))
    write_image(tmp_path / "x" / "c.png")
    clips, table = read_clip_list(
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
    table.index_languages(("german", "english"))
    assert [table.attributes(clip) for clip in clips] == [{}, {"age": 31, "language": 1}, {}]
    assert table.split("ann") == "train"


def test_a_list_finds_files_in_either_normal_form(tmp_path):
    """A path that a spreadsheet wrote in another Unicode normal form was not found (fault 4)."""
    names = [decomposed("é/José.wav"), "ö/Zoë.wav", "é" + decomposed("ü") + ".wav", "plain/x.wav"]
    for name in names:
        write_wav(tmp_path / name, voice(0.1))
        write_image(tmp_path / Path(name).parent / decomposed(Path(name).stem + ".png"))
    (tmp_path / decomposed("ö")).mkdir()  # a folder with an equivalent name, without the file
    cells = ["é/José.wav", decomposed("ö/Zoë.wav"), "ö/../" + decomposed("éü.wav"), r"plain\x.wav"]
    clips, _ = read_clip_list(write_list(tmp_path, "path,speaker_id", *(f"{cell},{i}" for i, cell in enumerate(cells))))
    assert [clip.clip_id for clip in clips] == ["plain/x", "é/José", "ö/Zoë", "ö/éü"]
    assert all(clip.path.is_file() and clip.image.is_file() for clip in clips)


@pytest.mark.parametrize(
    "rows, message",
    [
        (("speaker_id,age",), "line 1: the column path is missing"),
        (("path,speaker_id", ",a"), "line 2: path is empty"),
        (("path,speaker_id", "there.mp4,"), "line 2: speaker_id is empty"),
        (("path,speaker_id", "there.mp4,a", "nowhere.mp4,a"), "line 3: no such file: .*nowhere.mp4"),
        (("path,speaker_id", "list.csv,a"), "line 2: .*list.csv: neither a video"),
        (("path,speaker_id", "there.mp4,a", "./there.mp4,b"), "line 3: a second row for clip 'there'"),
        (("path,speaker_id", "there.mp4,a", "link.mp4,b"), "line 3: link.mp4 is the file of line 2 under another name"),
        (("path,speaker_id", "there.mp4,a", "hard.mp4,b"), "line 3: hard.mp4 is the file of line 2 under another name"),
        (("path,speaker_id", "folder.mp4,a"), "line 2: .*folder.mp4: not a regular file"),
        (("path,speaker_id", "loop.mp4,a"), "line 2: .*loop.mp4: cannot be read .Too many levels"),
        (("path,speaker_id", "there.mp4,001", "other.mp4,1"), "line 2: speaker '001' and speaker '1' would be two"),
        (("path,speaker_id,gender", "there.mp4,a,x"), "line 2: gender 'x' "),
    ],
)
def test_mistakes_in_a_list_are_reported_with_their_line(tmp_path, rows, message):
    """Two rows for one file, or for one person under two spellings, gave clips in two splits (faults 4 and 5)."""
    (tmp_path / "there.mp4").touch()
    (tmp_path / "other.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "link.mp4").symlink_to("there.mp4")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    os.link(tmp_path / "there.mp4", tmp_path / "hard.mp4")
    with pytest.raises(UserError, match=f"list.csv, {message}"):
        read_clip_list(write_list(tmp_path, *rows))


def test_a_dataset_from_a_list(tmp_path, extract):
    write_clip(tmp_path / "v" / "a.mp4")
    write_clip(tmp_path / "v" / "b.mp4", pitch=200)
    table = write_list(tmp_path, "path,speaker_id,gender,split", "v/a.mp4,ann,female,train", "v/b.mp4,bob,,test")
    extract("--videos", table, "--out", tmp_path / "data")
    (ann,), (bob,) = ([Clips(tmp_path / "data", split)[0]] for split in ("train", "test"))
    assert (ann["clip_id"], ann["speaker_id"], ann["gender"]) == ("v/a", "ann", LABELS["gender"].index("female"))
    assert (bob["clip_id"], bob["gender"]) == ("v/b", UNKNOWN)
    with pytest.raises(UserError, match="remove config.extract.attributes"):
        extract("--videos", table, "--out", tmp_path / "other", "--config.extract.attributes=people.csv")
