"""Published datasets as they come: folders, file names, formats and tables of VoxCeleb, AVSpeech, GRID and CREMA-D.

The trees are small, the recordings synthetic and the people invented; each is extracted with the real command.
"""

from pathlib import Path

import numpy as np
import pytest
from recordings import moving_frames, voice, write_clip, write_image, write_video, write_wav

from extract.attributes import hashed_split, read_attributes
from extract.clips import add_faces, find_clips
from slf_common.errors import UserError
from tfrecords.reader import Absent, Clips
from tfrecords.schema import LABELS, UNKNOWN
from tfrecords.writer import SPLITS

FEMALE, MALE = (LABELS["gender"].index(name) for name in ("female", "male"))
# With spaces as in the published file. The hashes of id00000 and id00007 are train and test, of id00004 validation.
VOX2 = """VoxCeleb2 ID ,VGGFace2 ID ,Gender ,Set 
id00000 ,n000000 ,m ,dev 
id00004 ,n000004 ,f ,dev 
id00007 ,n000007 ,f ,dev 
id00031 ,n000031 ,m ,test 
id09272 ,n009272 ,m ,test 
"""  # noqa: W291
VOX2_SPLITS = {"id00000": "train", "id00004": "validation", "id00007": "train", "id00031": "test"}


def records(dataset: Path) -> dict[str, dict]:
    """Returns all records of a dataset by clip id, with their split."""
    found = {}
    for split in SPLITS:
        try:
            clips = Clips(dataset, split)
        except Absent:
            continue
        found |= {clips[i]["clip_id"]: clips[i] | {"split": split} for i in range(len(clips))}
    return found


def extracted(extract, videos: Path, *arguments: str | Path) -> dict[str, dict]:
    """Extracts a folder, checks that every clip has a sound and a face, and returns its records by clip id."""
    out = videos.parent / "data"
    extract("--videos", videos, "--out", out, "--config.extract.extractors=mel,", *arguments)
    found = records(out)
    for record in found.values():
        assert np.abs(record["mel"]).max() > 0 and record["face"].std() > 0
    return found


@pytest.fixture
def vox2(tmp_path) -> Path:
    """`VoxCeleb2/dev/mp4/id00000/VIDEO/00001.mp4`, and a speaker in `test` who is not in the table."""
    root = tmp_path / "VoxCeleb2"
    for part, speakers in (("dev", ("id00000", "id00004", "id00007")), ("test", ("id00031", "id00042"))):
        for i, speaker in enumerate(speakers):
            write_clip(root / part / "mp4" / speaker / "21Uxsk56VDQ" / "00001.mp4", pitch=100 + 20 * i)
    return root


@pytest.mark.parametrize("separator", [",", "\t"])
def test_voxceleb2(vox2, extract, capsys, separator):
    table = vox2.parent / "vox2_meta.csv"
    table.write_text(VOX2.replace(",", separator))
    found = extracted(extract, vox2, "--attributes", table)
    assert sorted(found) == [
        f"{part}/mp4/{speaker}/21Uxsk56VDQ/00001"
        for part, speaker in (
            ("dev", "id00000"), ("dev", "id00004"), ("dev", "id00007"), ("test", "id00031"), ("test", "id00042"),
        )
    ]  # fmt: skip
    by_speaker = {record["speaker_id"]: record for record in found.values()}
    assert {speaker: by_speaker[speaker]["split"] for speaker in VOX2_SPLITS} == VOX2_SPLITS
    assert by_speaker["id00042"]["split"] == hashed_split("id00042")
    genders = [by_speaker[speaker]["gender"] for speaker in sorted(by_speaker)]
    assert genders == [MALE, FEMALE, FEMALE, MALE, UNKNOWN]
    assert all(np.isnan(record["age"]) and record["ethnicity"] == UNKNOWN for record in found.values())
    printed = capsys.readouterr().out
    assert "vox2_meta.csv: columns that are not used: 'vggface2 id'" in printed
    assert "the column 'set' gives the splits; a hash puts 5 % of the dev speakers in validation" in printed
    assert "1 rows match no clip: 'id09272' (line 6)" in printed
    assert "1 clips of 1 speakers have no row, so it gives no attributes for them" in printed and "'id00042'" in printed


def test_voxceleb2_with_the_column_name(vox2, extract, capsys):
    """Another release of the table has a column of names and tabs."""
    table = vox2.parent / "vox2_meta.csv"
    table.write_text("VoxCeleb2 ID \tName \tVGGFace2 ID \tGender \tSet \nid00007 \tAda_Example \tn000007 \tf \tdev \n")
    extract("--videos", vox2, "--attributes", table, "--out", vox2.parent / "data", "--dry-run")
    printed = capsys.readouterr().out
    assert "columns that are not used: 'vggface2 id', 'name'" in printed
    assert "4 clips of 4 speakers have no row" in printed


def test_the_table_of_another_dataset_is_rejected(vox2, extract):
    table = vox2.parent / "vox1_meta.csv"
    table.write_text("VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet\nid10001\tAda_Example\tf\tUK\tdev\n")
    with pytest.raises(UserError, match="no row matches a speaker or clip on disk; .*'id00000'"):
        extract("--videos", vox2, "--attributes", table, "--out", vox2.parent / "data", "--dry-run")


def test_every_hash_of_a_dev_speaker_leads_to_train_or_validation(tmp_path):
    rows = [f"id{i:05d} ,n{i:06d} ,m ,dev " for i in range(2000)]
    table = tmp_path / "vox2_meta.csv"
    table.write_text("\n".join(["VoxCeleb2 ID ,VGGFace2 ID ,Gender ,Set ", *rows]))
    splits = list(read_attributes(table, [])[0].splits.values())
    assert splits.count("test") == 0
    assert splits.count("validation") / len(splits) == pytest.approx(0.05, abs=0.02)


def test_voxceleb1_with_its_faces(tmp_path, extract, capsys):
    """Sounds in `wav/ID/VIDEO`, crops in `unzippedFaces/NAME/1.6/VIDEO`: of the same person and of the same video."""
    root = tmp_path / "VoxCeleb1"
    for speaker, video, count in (
        ("id10001", "aaaaaaaaaaa", 2),
        ("id10001", "-b_bbbbbbbb", 1),
        ("id10270", "aaaaaaaaaaa", 1),
    ):
        for i in range(count):
            write_wav(root / "wav" / speaker / video / f"{i + 1:05d}.wav", voice(1, pitch=100 + 10 * i))
    for name, video, frames in (("A._B._Example", "aaaaaaaaaaa", 5), ("A._B._Example", "-b_bbbbbbbb", 1)):
        for frame in range(frames):
            write_image(root / "unzippedFaces" / name / "1.6" / video / f"{25 * frame:07d}.jpg")
    table = root / "vox1_meta.csv"
    table.write_text(
        "VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet\n"
        "id10001\tA._B._Example\tf\tSouth Korea\tdev\nid10270\tAda_Example\tm\tUK\ttest\n"
    )
    found = extracted(extract, root, "--attributes", table)
    assert sorted(found) == [
        f"wav/id10001/{name}" for name in ("-b_bbbbbbbb/00001", "aaaaaaaaaaa/00001", "aaaaaaaaaaa/00002")
    ]
    assert all(record["gender"] == FEMALE and record["split"] == "train" for record in found.values())
    printed = capsys.readouterr().out
    assert "3 sounds have a face from unzippedFaces, of the same person and video" in printed
    assert "1 of 4 clips are sounds without an image and will fail: 'wav/id10270/aaaaaaaaaaa/00001'" in printed
    assert "columns that are not used: 'nationality'" in printed
    assert "no image" in (tmp_path / "data" / "failures.csv").read_text()


def test_a_videos_sounds_get_its_crops_in_order(tmp_path):
    for i in range(2):
        write_wav(tmp_path / "wav" / "id10001" / "aaaaaaaaaaa" / f"{i + 1:05d}.wav", voice(0.1, pitch=100 + i))
    write_wav(tmp_path / "wav" / "id10001" / "bbbbbbbbbbb" / "00001.wav", voice(0.1, pitch=200))  # without crops
    folder = tmp_path / "unzippedFaces" / "Ada_Example" / "1.6" / "aaaaaaaaaaa"
    for frame in (0, 25, 50, 75):
        write_image(folder / f"{frame:07d}.jpg")
    (folder / "._0000000.jpg").write_text("of macOS")
    clips = find_clips(tmp_path).clips
    faces = [clip.image for clip in add_faces(tmp_path, clips, {"id10001": "Ada_Example"})]
    assert faces == [folder / "0000025.jpg", folder / "0000075.jpg", None]
    assert [clip.image for clip in add_faces(tmp_path, clips, {})] == [None] * 3


@pytest.mark.parametrize("folder", ["", "train"])
def test_avspeech(tmp_path, extract, capsys, folder):
    """Clips named `ID_START_END.mp4`: those of one video are in one split; nothing is known of the speakers."""
    root = tmp_path / "avspeech"
    names = ["-_bcdefghij_90.000000_93.003000", "-_bcdefghij_200.1_204", "kLmNoPqRsT0_0.0_5.16"]
    for i, name in enumerate(names):
        write_clip(root / folder / f"{name}.mp4", pitch=100 + 20 * i)
    found = extracted(extract, root)
    assert len(found) == 3
    assert [found[f"{folder}/{name}".strip("/")]["speaker_id"] for name in names] == [
        "-_bcdefghij", "-_bcdefghij", "kLmNoPqRsT0",
    ]  # fmt: skip
    assert all(record["gender"] == UNKNOWN and np.isnan(record["age"]) for record in found.values())
    printed = capsys.readouterr().out
    assert "3 clips by the video in the file name, as in AVSpeech (ID_START_END)" in printed
    assert ("the folders train do not set the split" in printed) == bool(folder)


def test_a_persons_folder_takes_precedence_over_a_file_name(tmp_path):
    names = ("ann/kLmNoPqRsT0_0.0_5.16.mp4", "bob/1001_DFA_ANG_XX.mp4", "kLmNoPqRsT0/kLmNoPqRsT0_0.0_5.16_video.mp4")
    for name in names:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(name)
    assert [clip.speaker_id for clip in find_clips(tmp_path).clips] == ["ann", "bob", "kLmNoPqRsT0"]


def test_grid(tmp_path, extract):
    """MPEG-1 videos in a folder for each speaker, and a people.csv, since GRID has no table."""
    root = tmp_path / "grid"
    for i, name in enumerate(("s1/bbaf2n", "s1/bbaf3s", "s4/bbaf2n")):
        sound, frames = voice(1.2, rate=44_100, pitch=100 + 20 * i, channels=2), moving_frames(3)
        write_video(root / f"{name}.mpg", sound, frames, rate=44_100, codecs=("mp2", "mpeg1video"), fps=25)
    (root / "people.csv").write_text("speaker_id,gender\ns1,male\ns4,female\n")
    found = extracted(extract, root)
    assert {name: record["speaker_id"] for name, record in found.items()} == {
        "s1/bbaf2n": "s1", "s1/bbaf3s": "s1", "s4/bbaf2n": "s4",
    }  # fmt: skip
    assert [found[name]["gender"] for name in sorted(found)] == [MALE, MALE, FEMALE]


@pytest.mark.parametrize("folder", ["VideoFlash", ""])
def test_crema_d(tmp_path, extract, capsys, folder):
    """Flash videos named by actor in one folder, and VideoDemographics.csv."""
    root = tmp_path / "CREMA-D"
    names = (
        "1001_DFA_ANG_XX",
        "1001_IEO_HAP_HI",
        "1013_ITH_SAD_X",
        "1045_WSI_FEA_MD",
        "1047_TIE_NEU_XX",
        "1050_MTI_DIS_LO",
    )
    for i, name in enumerate(names):
        sound = voice(1.2, rate=44_100, pitch=100 + 10 * i)
        write_video(root / folder / f"{name}.flv", sound, moving_frames(1.2), rate=44_100, codecs=("mp3", "flv"))
    write_wav(root / folder / "1001_DFA_ANG_XX.wav", voice(1))  # the same recording again
    table = root / "VideoDemographics.csv"
    table.write_text(
        '"ActorID","Age","Sex","Race","Ethnicity"\n1001,51,"Male","Caucasian","Not Hispanic"\n'
        '1013,22,"Female","Caucasian","Hispanic"\n1045,22,"Male","Asian","Not Hispanic"\n'
        '1047,22,"Female","Unknown","Not Hispanic"\n1050,62,"Male","African American","Not Hispanic"\n'
    )
    found = extracted(extract, root, "--attributes", table)
    assert [Path(name).name for name in sorted(found)] == sorted(names)
    known = {record["speaker_id"]: record for record in found.values()}
    assert [known[actor]["age"] for actor in sorted(known)] == [51, 22, 22, 22, 62]
    assert [known[actor]["gender"] for actor in sorted(known)] == [MALE, FEMALE, MALE, FEMALE, MALE]
    classes = ("white", "latino hispanic", "asian", None, "black")
    indices = [UNKNOWN if name is None else LABELS["ethnicity"].index(name) for name in classes]
    assert [known[actor]["ethnicity"] for actor in sorted(known)] == indices
    assert "6 clips by the file name, as in CREMA-D (1001_DFA_ANG_XX)" in capsys.readouterr().out


def test_pairs_of_sound_and_image(tmp_path, extract, capsys):
    root = tmp_path / "pairs"
    for i, name in enumerate(("ann/1", "ann/2", "bob")):
        write_wav(root / f"{name}.wav", voice(1, pitch=100 + 20 * i))
    for name in ("ann/1.png", "ann/2.JPG", "bob.jpeg"):
        write_image(root / name)
    found = extracted(extract, root)
    assert {name: record["speaker_id"] for name, record in found.items()} == {
        "ann/1": "ann", "ann/2": "ann", "bob": "bob",
    }  # fmt: skip
    assert "without an image" not in capsys.readouterr().out
