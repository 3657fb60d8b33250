"""Finds the clips in a folder and their speakers.

A clip is a video, or a sound file next to an image with the same stem.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from slf_common.errors import UserError

# In order of preference for files that share a stem.
VIDEO = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".mpg", ".flv")
SOUND = (".wav", ".flac", ".mp3", ".m4a", ".ogg", ".opus")
IMAGE = (".png", ".jpg", ".jpeg")

# How the speaker is derived from a clip's path.
NAMED, ABOVE, FIRST, FILE = (
    "the folder named like VoxCeleb's speakers (id00012)",
    "the given folder, named like VoxCeleb's speakers (id00012)",
    "the first folder below the given one",
    "the file name, since there is no folder",
)
_VOXCELEB = re.compile(r"id[0-9]{5}")
# File names that start with the speaker, in a dataset without folders for speakers. AVSpeech names no speakers: all
# clips of a video count as one.
FILE_NAMES = {
    "the file name, as in CREMA-D (1001_DFA_ANG_XX)": re.compile(r"([0-9]{4})_[A-Z]{3}_[A-Z]{3}_[A-Z]{1,2}"),
    "the video in the file name, as in AVSpeech (ID_START_END)": re.compile(
        r"([A-Za-z0-9_-]{11})_[0-9]+(?:\.[0-9]+)?_[0-9]+(?:\.[0-9]+)?"
    ),
}
# Names of folders that hold part of a dataset or one kind of file, not one speaker; _PART: if they have subfolders.
_CONTAINER = re.compile(
    r"(pre)?train(val|ing|ed)?|dev|val|valid|validation|test(ing)?|eval(uation)?|all|data|raw|clips?|"
    r"mp4|m4a|aac|wavs?|flac|mp3|audios?|videos?|sounds?|unzippedfaces|audio(wav|mp3|_25k)|videoflash",
    re.IGNORECASE,
)
_PART = re.compile(r"(pre)?(train|dev|val|valid|test|eval)[-_. ].*", re.IGNORECASE)
MAX_CLIPS_OF_ONE_FOLDER = 100  # a single folder with more clips is not assumed to be one speaker

FACES_FOLDER, FACES_SCALE = "unzippedFaces", "1.6"  # of VoxCeleb1: unzippedFaces/NAME/1.6/VIDEO/0000375.jpg

_IGNORED = (".", "lost+found")  # prefixes of names

FileKey = tuple[int, int]  # device and inode


@dataclasses.dataclass(frozen=True)
class Clip:
    """One clip on disk. `image` shows the face for a sound file; it is None for a video."""

    clip_id: str
    speaker_id: str
    path: Path
    image: Path | None = None


@dataclasses.dataclass(frozen=True)
class FoundClips:
    """Clips sorted by id, the files and folders skipped as duplicates, (name, name of the original), and the number
    of clips whose speaker was derived by each of the rules `NAMED`, `ABOVE`, `FIRST`, `FILE` and `FILE_NAMES`.
    """

    clips: list[Clip]
    aliases: list[tuple[str, str]]
    rules: Counter[str]


def find_clips(root: str | Path) -> FoundClips:
    """Finds all clips below `root`.

    `clip_id` is the relative path without suffix (`id00012/abc/00001`), in Unicode's composed form (NFC).
    `speaker_id` is the folder in the path that is named like VoxCeleb's speakers, at any level, or `root` or its parent
    if one of them has such a name; otherwise the first folder, or the stem of a file directly in `root`. If no folder
    of the path can be a speaker, a file name like CREMA-D's or AVSpeech's (`FILE_NAMES`) gives it. Of files that share
    a stem, the clip is the first kind in `VIDEO`, then `SOUND`. Hidden files and folders are ignored.

    Links are followed. A file gives one clip and a folder is read once, however many links point to it: the first name
    in sorted order is kept, for a sound the first with an image next to it. Files are compared by device and inode.
    Raises `UserError` if `root` is not a folder, a folder cannot be listed, a link is broken, or two files have the
    same id.
    """
    root = Path(root)
    if not os.path.isdir(root):
        raise UserError(f"{root}: no such folder of videos")
    aliases: list[tuple[str, str]] = []
    candidates = [clip for folder, files in _walk(root, aliases) for clip in _clips_of(root, folder, files)]
    candidates.sort(key=lambda each: (each[1].path.suffix.lower() in SOUND and not each[1].image, each[1].clip_id))
    kept: dict[FileKey, Clip] = {}
    for file, clip in candidates:
        first = kept.setdefault(file, clip)
        if first is not clip:
            aliases.append((clip.clip_id, first.clip_id))
    clips = sorted(kept.values(), key=lambda clip: clip.clip_id)
    for one, other in zip(clips, clips[1:], strict=False):
        if one.clip_id == other.clip_id:
            # ASCII: names that differ only in their Unicode normal form look the same.
            raise UserError(
                f"two files have the id {one.clip_id!r}: {ascii(str(one.path))} and {ascii(str(other.path))}; "
                "rename or remove one"
            )
    above = _speaker_above(root)
    speakers = [_speaker(clip.clip_id.split("/"), above) for clip in clips]
    clips = [Clip(clip.clip_id, name, clip.path, clip.image) for clip, (name, _) in zip(clips, speakers, strict=True)]
    return FoundClips(clips, sorted(aliases), Counter(rule for _, rule in speakers))


def add_faces(root: Path, clips: Sequence[Clip], names: Mapping[str, str]) -> list[Clip]:
    """Returns the clips with VoxCeleb1's face crops for sounds without an image: those of the same person and video.

    They are `unzippedFaces/NAME/1.6/VIDEO/*.jpg` below `root`, named by frame; a video's n sounds get n crops, evenly
    spaced and in the same order. `names`: NAME of each speaker, from the table's column VGGFace1 ID. Sounds are
    `.../VIDEO/00001.wav`.
    """
    directories, sounds = DirectoryCache(), [clip for clip in clips if clip.path.suffix.lower() in SOUND]
    by_video: dict[Path, list[Clip]] = {}
    for clip in sounds:
        if not clip.image and clip.speaker_id in names:
            folder = root / FACES_FOLDER / names[clip.speaker_id] / FACES_SCALE / clip.path.parent.name
            by_video.setdefault(folder, []).append(clip)
    images: dict[str, Path] = {}
    for folder, members in by_video.items():
        crops = [written[0] for name, written in directories(folder).items() if _is_crop(name)]
        for i, clip in enumerate(members if crops else ()):
            images[clip.clip_id] = folder / crops[(2 * i + 1) * len(crops) // (2 * len(members))]
    return [dataclasses.replace(clip, image=images.get(clip.clip_id, clip.image)) for clip in clips]


def _is_crop(name: str) -> bool:
    return name.lower().endswith(IMAGE) and not name.startswith(_IGNORED)


def make_clip(path: Path, clip_id: str, speaker_id: str, directories: DirectoryCache) -> Clip:
    """Returns the clip of one file: a video, or a sound with the image of the same stem next to it.

    Raises `ValueError` for a file of another kind.
    """
    kind = path.suffix.lower()
    if kind not in VIDEO + SOUND:
        raise ValueError(f"{path}: neither a video ({format_suffixes(VIDEO)}) nor a sound ({format_suffixes(SOUND)})")
    suffixes = () if kind in VIDEO else [form for suffix in IMAGE for form in (suffix, suffix.upper())]
    siblings = directories(path.parent)
    image = next((siblings[name][0] for suffix in suffixes if (name := compose(path.stem) + suffix) in siblings), None)
    return Clip(clip_id, speaker_id, path, path.with_name(image) if image else None)


class DirectoryCache:
    """Maps names in composed form (NFC) to the names in a folder; each folder is listed once."""

    def __init__(self) -> None:
        self._listed = functools.cache(_list_names)

    def __call__(self, folder: Path) -> dict[str, list[str]]:
        return self._listed(folder)

    def locate(self, path: Path) -> Path:
        """Returns the path as it is on disk if it differs only in its Unicode normal form, else unchanged."""
        if os.path.lexists(path):
            return path
        return next(self._matches(Path(path.anchor), path.parts[bool(path.anchor) :]), path)

    def _matches(self, folder: Path, parts: Sequence[str]) -> Iterator[Path]:
        if not parts:
            yield folder
            return
        names = [".."] if parts[0] == ".." else self(folder).get(compose(parts[0]), ())
        for name in names:
            yield from self._matches(folder / name, parts[1:])


def _list_names(folder: Path) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    try:
        for name in sorted(os.listdir(folder)):
            names.setdefault(compose(name), []).append(name)
    except OSError:
        return {}
    return names


def file_key(path: Path) -> FileKey:
    """Returns device and inode of a regular file. Raises `ValueError` if there is none or it cannot be read."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"no such file: {path}") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path}: not a regular file")
    return status.st_dev, status.st_ino


def compose(text: str) -> str:
    """Returns text in composed normal form (NFC): macOS decomposes file names, spreadsheets do not."""
    return unicodedata.normalize("NFC", text)


def format_suffixes(suffixes: Sequence[str]) -> str:
    """Formats suffixes as `mp4, mkv`."""
    return ", ".join(suffix[1:] for suffix in suffixes)


def check_speakers(root: str | Path, clips: Sequence[Clip], named: set[str]) -> None:
    """Raises `UserError` if folders that contain speakers would be taken for speakers, as `root` is too high.

    `named`: speakers in the attributes CSV, which are accepted.
    """
    counts = Counter(clip.speaker_id for clip in clips)
    nested = {clip.speaker_id for clip in clips if clip.clip_id.count("/") > 1}
    first = {clip.clip_id.split("/")[0] for clip in clips if "/" in clip.clip_id}
    for name in sorted((first & counts.keys()) - named):
        single = len(counts) == 1 and counts[name] > MAX_CLIPS_OF_ONE_FOLDER and not _VOXCELEB.fullmatch(name)
        if single or _CONTAINER.fullmatch(name) or (name in nested and _PART.fullmatch(name)):
            raise UserError(
                f"{root}: the folder {name!r} would be taken for one speaker of {counts[name]} of {len(clips)} clips; "
                f"if it contains the speakers' folders, give --videos {Path(root) / name}, or name the speakers in the "
                "column speaker_id of people.csv or of a clip list"
            )


def _walk(root: Path, aliases: list[tuple[str, str]]) -> Iterator[tuple[Path, list[os.DirEntry]]]:
    """Yields each folder below `root` with its files, sorted by path; adds folders met again to `aliases`."""
    seen: dict[FileKey, Path] = {}
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            status = os.stat(folder)
            first = seen.setdefault((status.st_dev, status.st_ino), folder)
            if first is not folder:
                aliases.append((_text(folder.relative_to(root)) + "/", _text(first.relative_to(root)) + "/"))
                continue
            with os.scandir(folder) as listing:
                entries = [entry for entry in listing if not entry.name.startswith(_IGNORED)]
        except OSError as error:
            raise UserError(f"{folder}: cannot list this folder ({error.strerror})") from None
        folders = [entry.name for entry in entries if _is_folder(entry)]
        # With the slash, as in paths: "a b/" sorts before "a/".
        waiting += [folder / name for name in sorted(folders, key=lambda name: f"{name}/", reverse=True)]
        others = set(folders)
        yield folder, [entry for entry in entries if entry.name not in others]


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        if entry.is_symlink():
            return stat.S_ISDIR(entry.stat().st_mode)
        return entry.is_dir()
    except OSError as error:
        suffix = os.path.splitext(entry.name)[1].lower()
        if suffix and suffix not in VIDEO + SOUND + IMAGE:
            return False  # some other file, not needed
        what = "broken link" if entry.is_symlink() else "cannot be read"
        raise UserError(f"{entry.path}: {what} ({error.strerror}); repair or remove it") from None


def _clips_of(root: Path, folder: Path, files: Sequence[os.DirEntry]) -> Iterator[tuple[FileKey, Clip]]:
    """Yields the clips in a folder, without their speakers; several have the same id where names differ only in their
    Unicode normal form or in the case of their suffix.
    """
    within = "" if folder == root else _text(folder.relative_to(root)) + "/"
    by_stem: dict[str, dict[str, list[os.DirEntry]]] = {}
    for entry in sorted(files, key=lambda entry: entry.name):
        stem, suffix = os.path.splitext(entry.name)
        if (kind := suffix.lower()) in VIDEO + SOUND + IMAGE:
            by_stem.setdefault(compose(stem), {}).setdefault(kind, []).append(entry)
    for stem, kinds in by_stem.items():
        media = next((suffix for suffix in VIDEO + SOUND if suffix in kinds), "")
        images = [Path(kinds[suffix][0].path) for suffix in IMAGE if suffix in kinds and media in SOUND]
        clip_id = within + _text(Path(stem))
        for entry in kinds.get(media, ()):
            try:
                status = entry.stat()
            except OSError as error:
                raise UserError(f"{entry.path}: cannot be read ({error.strerror})") from None
            yield (status.st_dev, status.st_ino), Clip(clip_id, "", Path(entry.path), next(iter(images), None))


def _speaker_above(root: Path) -> tuple[str, int]:
    """Returns the name of `root` or its parent if it is a VoxCeleb speaker, and the usual folder depth below `root`."""
    for path in (root.absolute(), root.resolve()):
        for folders, name in ((1, path.name), (0, path.parent.name)):
            if _VOXCELEB.fullmatch(name):
                return name, folders
    return "", -1


def _speaker(parts: Sequence[str], above: tuple[str, int]) -> tuple[str, str]:
    """Returns a clip's speaker and the rule that gave it."""
    folders = parts[:-1]
    for name in folders:
        if _VOXCELEB.fullmatch(name):
            return name, NAMED
    if len(folders) <= above[1]:
        return above[0], ABOVE
    if all(_CONTAINER.fullmatch(name) for name in folders):
        for rule, pattern in FILE_NAMES.items():
            if match := pattern.fullmatch(parts[-1]):
                return match[1], rule
    return parts[0], FIRST if folders else FILE


def _text(path: Path) -> str:
    """Returns a POSIX path in composed form; bytes that are not UTF-8 are written as `\\xff`."""
    return compose(os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace"))
