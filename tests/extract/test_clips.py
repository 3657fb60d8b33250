"""Finding clips: which files are clips, their ids and their speakers."""

import os
import tempfile
import unicodedata
from pathlib import Path

import pytest
from recordings import voice, write_image, write_wav

from extract.attributes import AttributeTable
from extract.clips import ABOVE, FIRST, NAMED, find_clips
from extract.plan import make_chunks
from slf_common.errors import UserError

NOBODY_UID = 65534


def touch(root: Path, *names: str) -> Path:
    """Creates files with different contents: their own names."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def ids(root: Path) -> list[str]:
    return [clip.clip_id for clip in find_clips(root).clips]


def speakers(root: Path) -> list[str]:
    return [clip.speaker_id for clip in find_clips(root).clips]


def decomposed(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def test_clips_are_found_in_order_with_ids_from_folders(tmp_path):
    media_files = [
        "id2/b/1.mp4",
        "id1/b/2.MKV",
        "id1/a c/it's \u00fc \u4f60.mp4",
        "alone.mov",
        "id3/x.wav",
        "id3/y.wav",
    ]
    others = ["id3/x.PNG", "id3/z.png", "id1/b/notes.txt", "id1/b/._2.mp4", ".cache/1.mp4", "id2/b/1.wav"]
    for name in media_files + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    clips = find_clips(tmp_path).clips
    assert [clip.clip_id for clip in clips] == [
        "alone", "id1/a c/it's \u00fc \u4f60", "id1/b/2", "id2/b/1", "id3/x", "id3/y",
    ]  # fmt: skip
    assert [clip.speaker_id for clip in clips] == ["alone", "id1", "id1", "id2", "id3", "id3"]
    assert clips[3].path.suffix == ".mp4"  # not the sound next to it
    assert clips[4].image == tmp_path / "id3/x.PNG" and clips[5].image is None


def test_a_missing_folder_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        find_clips(tmp_path / "nowhere")


@pytest.mark.parametrize("kind", ["symbolic link", "hard link", "link to a folder"])
def test_a_file_with_two_names_is_one_clip_in_one_split(tmp_path, kind):
    """With links, a clip was counted several times and could be in two splits (fault 5)."""
    # Their hashes put id00000 in the training split and id00007 in the test split.
    touch(tmp_path, "id00007/a/1.mp4", "id00007/a/2.mp4", "id00004/b/3.mp4")
    (tmp_path / "id00000").mkdir()
    if kind == "link to a folder":
        (tmp_path / "id00000" / "a").symlink_to(tmp_path / "id00007" / "a")
    else:
        (tmp_path / "id00000" / "a").mkdir()
        for name in ("1", "2"):
            source, link = tmp_path / "id00007" / "a" / f"{name}.mp4", tmp_path / "id00000" / "a" / f"x{name}.mp4"
            link.symlink_to(source) if kind == "symbolic link" else os.link(source, link)
    found = find_clips(tmp_path)
    first = "" if kind == "link to a folder" else "x"
    assert [clip.clip_id for clip in found.clips] == [f"id00000/a/{first}1", f"id00000/a/{first}2", "id00004/b/3"]
    assert found.aliases and all(name.startswith("id00007/a") for name, _ in found.aliases)
    files = [clip.path.resolve() for chunk in make_chunks(found.clips, AttributeTable(), 9) for clip in chunk.clips]
    assert len({os.stat(path).st_ino for path in files}) == len(files) == 3


def test_cyclic_links_are_read_once(tmp_path):
    """A link to a parent folder gave forty copies of each clip (fault 5)."""
    touch(tmp_path, "a b/1.mp4", "a/2.mp4", "c/d/3.mp4")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "c" / "d" / "up").symlink_to("..")
    (tmp_path / "c" / "across").symlink_to(tmp_path / "a")
    found = find_clips(tmp_path)
    assert [clip.clip_id for clip in found.clips] == ["a b/1", "a/2", "c/d/3"]
    assert found.aliases == [("a/loop/", "./"), ("c/across/", "a/"), ("c/d/up/", "c/")]


def test_of_a_sounds_names_the_one_with_an_image_is_kept(tmp_path):
    write_wav(tmp_path / "a" / "1.wav", voice(1))
    (tmp_path / "b").mkdir()
    os.link(tmp_path / "a" / "1.wav", tmp_path / "b" / "1.wav")
    write_image(tmp_path / "b" / "1.png")
    ((clip,), aliases) = find_clips(tmp_path).clips, find_clips(tmp_path).aliases
    assert clip.clip_id == "b/1" and clip.image == tmp_path / "b" / "1.png" and aliases == [("a/1", "b/1")]


def test_duplicates_are_reported(tmp_path, extract, capsys):
    """The number of skipped files is printed, also by a dry run (fault 5)."""
    touch(tmp_path / "videos", *(f"a/{i}.mp4" for i in range(5)))
    for i in range(5):
        os.link(tmp_path / "videos" / "a" / f"{i}.mp4", tmp_path / "videos" / "a" / f"x{i}.mp4")
    extract("--videos", tmp_path / "videos", "--out", tmp_path / "data", "--dry-run")
    printed = capsys.readouterr().out
    assert "5 files or folders skipped as duplicates: 'a/x0' is 'a/0'" in printed
    assert "of 5 clips" in printed


@pytest.fixture
def open_folder():
    """A folder whose parents every user may enter."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.mark.parametrize("mode", [0o000, 0o444], ids=["not listable", "not enterable"])
def test_an_unreadable_folder_is_reported(open_folder, mode):
    """Folders without permission were silently skipped (fault 6)."""
    touch(open_folder, "a/1.mp4", "b/2.mp4")
    os.chmod(open_folder / "b", mode)
    user = os.geteuid()
    try:
        if not user:
            os.seteuid(NOBODY_UID)  # the superuser may read anything
        with pytest.raises(UserError, match=f"^{open_folder}/b.*Permission denied") as error:
            find_clips(open_folder)
    finally:
        os.seteuid(user)
        os.chmod(open_folder / "b", 0o755)
    assert "\n" not in str(error.value)


def test_a_folder_too_deep_to_be_listed_is_reported(tmp_path):
    """If a folder could not be listed, its clips were silently lost (fault 6)."""
    touch(tmp_path, "a/1.mp4")
    folder = os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=folder)
        folder, parent = os.open("d" * 250, os.O_RDONLY, dir_fd=folder), folder
        os.close(parent)
    os.close(folder)
    with pytest.raises(UserError, match="d: cannot list this folder .File name too long"):
        find_clips(tmp_path)


@pytest.mark.parametrize("target", ["nowhere", "id2"])
def test_a_broken_link_is_reported(tmp_path, target):
    """A link to an unmounted disk, or to itself, was silently skipped (fault 6)."""
    touch(tmp_path, "id1/1.mp4")
    (tmp_path / "id2").symlink_to(target)
    with pytest.raises(UserError, match=f"{tmp_path}/id2: broken link"):
        find_clips(tmp_path)


def test_names_in_either_normal_form_are_one_speaker(tmp_path):
    """José in macOS's normal form and in the usual one were two people, maybe in two splits (fault 4)."""
    touch(tmp_path, "José/1.mp4", decomposed("José/2.mp4"))
    assert len(os.listdir(tmp_path)) == 2
    assert ids(tmp_path) == ["José/1", "José/2"] and set(speakers(tmp_path)) == {"José"}


def test_two_files_with_the_same_id_are_rejected(tmp_path):
    """Names that differ only in their Unicode normal form would give two clips the same id (fault 4)."""
    touch(tmp_path, "José/1.mp4", decomposed("José/1.mp4"))
    with pytest.raises(UserError, match=r"two files have the id 'José/1': .*Jose\\u0301.*Jos\\xe9"):
        find_clips(tmp_path)


def test_a_sound_and_its_image_may_use_different_normal_forms(tmp_path):
    write_wav(tmp_path / decomposed("José.wav"), voice(1))
    image = write_image(tmp_path / "José.PNG")
    assert find_clips(tmp_path).clips[0].image == image


@pytest.mark.parametrize("above", ["", "vox2", "vox2/dev", "vox2/dev/mp4", "a/b/c"])
def test_voxceleb_speakers_are_recognised_at_any_level(tmp_path, above):
    """With a folder one level too high, all of VoxCeleb2's `dev` became one speaker (fault 10)."""
    names = [f"id0000{i}/abc/0000{j}.mp4" for i in range(3) for j in range(2)]
    touch(tmp_path / above, *names)
    found = find_clips(tmp_path)
    assert [clip.speaker_id for clip in found.clips] == [name[:7] for name in names]
    assert found.rules == {NAMED: 6}


@pytest.mark.parametrize("inside", ["id00012", "id00012/21Uxsk56VDQ"])
def test_the_folder_of_a_voxceleb_speaker_gives_one_speaker(tmp_path, inside, monkeypatch):
    """With a folder one level too low, each of a speaker's videos became a speaker (fault 10)."""
    touch(tmp_path, "id00012/21Uxsk56VDQ/1.mp4", "id00012/21Uxsk56VDQ/2.mp4", "id00012/abcdefghijk/1.mp4")
    assert set(speakers(tmp_path / inside)) == {"id00012"}
    monkeypatch.chdir(tmp_path / inside)
    assert set(speakers(Path("."))) == {"id00012"} and set(find_clips(".").rules) == {ABOVE}


def test_other_folders_keep_their_own_speakers(tmp_path):
    touch(tmp_path / "libri", "84/121123/84-121123-0000.flac", "84/121550/x.flac", "174/50561/y.flac", "flat.mp4")
    assert speakers(tmp_path / "libri") == ["174", "84", "84", "flat"]
    touch(tmp_path / "id12345", "ann/videos/1.mp4", "bob/videos/1.mp4")  # a user name, not VoxCeleb's layout
    assert find_clips(tmp_path / "id12345").rules == {FIRST: 2}


@pytest.mark.parametrize(
    "names",
    [
        ("dev/ann/1.mp4", "test/bob/1.mp4"),
        ("MP4/ann/x/1.mp4",),
        ("dev-clean/84/121123/1.flac", "test-other/174/2/1.flac"),
        ("train/1.mp4", "validation/2.mp4"),
        tuple(f"someone/{i % 7}/{i}.mp4" for i in range(101)),
    ],
)
def test_a_folder_that_contains_speakers_is_not_a_speaker(tmp_path, names, extract):
    """A folder at too high a level turned thousands of people into one speaker (fault 10)."""
    touch(tmp_path / "v", *names)
    top = min(names).split("/")[0]
    with pytest.raises(UserError, match=f"'{top}' would be taken for one speaker.*--videos {tmp_path}/v/{top}"):
        extract("--videos", tmp_path / "v", "--out", tmp_path / "data", "--dry-run")
    folders = {name.split("/")[0] for name in names}
    (tmp_path / "v" / "people.csv").write_text("speaker_id\n" + "\n".join(folders))  # accepted if stated explicitly
    extract("--videos", tmp_path / "v", "--out", tmp_path / "data", "--dry-run")


def test_how_speakers_were_found_is_printed(tmp_path, extract, capsys):
    """The rule that gave the speakers is printed, with the speaker of most clips (fault 10)."""
    touch(tmp_path / "v", "dev/mp4/id00012/a/1.mp4", "dev/mp4/id00012/a/2.mp4", "test/mp4/id00017/b/1.mp4")
    extract("--videos", tmp_path / "v", "--out", tmp_path / "data", "--dry-run")
    printed = capsys.readouterr().out
    assert "speakers: 2, for example 'id00012' with 2 of 3 clips" in printed and NAMED in printed
    assert "the folders dev, test do not set the split" in printed
