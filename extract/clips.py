"""Finding clips in a folder, and who speaks in them.

A clip is a video, or a sound file beside an image with the same stem.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from slf_common.errors import UserError

# In order of preference, where files share a stem.
VIDEO = (".mp4", ".mkv", ".webm", ".avi", ".mov")
SOUND = (".wav", ".flac", ".mp3", ".m4a")
IMAGE = (".png", ".jpg", ".jpeg")

# How a clip's speaker is read off its path.
NAMED, ABOVE, FIRST, FILE = (
    "the folder named like VoxCeleb's speakers (id00012)",
    "the folder given, named like VoxCeleb's speakers (id00012)",
    "the first folder below the one given",
    "the file's own name, as it lies in no folder",
)
_VOXCELEB = re.compile(r"id[0-9]{5}")
# Folders that hold a part of a dataset or a kind of file, never one speaker; those of _PART hold folders of speakers.
_CONTAINER = re.compile(
    r"(pre)?train(val|ing|ed)?|dev|val|valid|validation|test(ing)?|eval(uation)?|all|data|raw|clips?|"
    r"mp4|m4a|aac|wavs?|flac|mp3|audios?|videos?|sounds?|unzippedfaces",
    re.IGNORECASE,
)
_PART = re.compile(r"(pre)?(train|dev|val|valid|test|eval)[-_. ].*", re.IGNORECASE)
MOST_ALONE = 100  # clips, above which one folder that holds them all is not taken for a speaker unasked

_PASSED_OVER = (".", "lost+found")  # beginnings of names

File = tuple[int, int]  # device and inode


@dataclasses.dataclass(frozen=True)
class Clip:
    """One clip on disk. `image` holds the face of a sound file; a video has none."""

    clip_id: str
    speaker_id: str
    path: Path
    image: Path | None = None


@dataclasses.dataclass(frozen=True)
class Found:
    """Clips sorted by id, the names (second name, first name) of what was there under a name before, and the number
    of clips whose speaker was found by each of the rules `NAMED`, `ABOVE`, `FIRST`, `FILE`.
    """

    clips: list[Clip]
    aliases: list[tuple[str, str]]
    rules: Counter[str]


def find_clips(root: str | Path) -> Found:
    """All clips below `root`.

    `clip_id` is the relative path without suffix (`id00012/abc/00001`), in Unicode's composed form (NFC).
    `speaker_id` is the folder of the path that is named like VoxCeleb's speakers, if there is one, wherever it is, or
    `root` itself or its parent if that is named so; else the first folder, or the stem of a file in `root` itself. Of
    files that share a stem the first kind in `VIDEO`, then `SOUND` is the clip. Hidden files and folders are passed
    over.

    Links are followed. A file is one clip and a folder is read once, whatever links lead there: the first of its names
    in sorted order stays, of a sound the first that has an image beside it. Files are compared by device and inode.
    Raises `UserError` if `root` is no folder, if a folder cannot be listed, a link leads nowhere, or two files have
    one id.
    """
    root = Path(root)
    if not os.path.isdir(root):
        raise UserError(f"{root}: no such folder of videos")
    aliases: list[tuple[str, str]] = []
    candidates = [clip for folder, files in _walk(root, aliases) for clip in _clips_of(root, folder, files)]
    candidates.sort(key=lambda each: (each[1].path.suffix.lower() in SOUND and not each[1].image, each[1].clip_id))
    kept: dict[File, Clip] = {}
    for file, clip in candidates:
        first = kept.setdefault(file, clip)
        if first is not clip:
            aliases.append((clip.clip_id, first.clip_id))
    clips = sorted(kept.values(), key=lambda clip: clip.clip_id)
    for one, other in zip(clips, clips[1:], strict=False):
        if one.clip_id == other.clip_id:
            # ASCII: names that differ in Unicode's normal form alone look the same.
            raise UserError(
                f"two files have the id {one.clip_id!r}: {ascii(str(one.path))} and {ascii(str(other.path))}; "
                "rename or remove one"
            )
    above = _speaker_above(root)
    spoken = [_speaker(clip.clip_id.split("/"), above) for clip in clips]
    clips = [Clip(clip.clip_id, name, clip.path, clip.image) for clip, (name, _) in zip(clips, spoken, strict=True)]
    return Found(clips, sorted(aliases), Counter(rule for _, rule in spoken))


def make_clip(path: Path, clip_id: str, speaker_id: str, names: Names) -> Clip:
    """The clip of one named file: a video, or a sound with the image of the same stem beside it. Raises `ValueError`
    for a file of another kind.
    """
    kind = path.suffix.lower()
    if kind not in VIDEO + SOUND:
        raise ValueError(f"{path}: neither a video ({spell(VIDEO)}) nor a sound ({spell(SOUND)})")
    suffixes = () if kind in VIDEO else [form for suffix in IMAGE for form in (suffix, suffix.upper())]
    beside = names(path.parent)
    image = next((beside[name][0] for suffix in suffixes if (name := composed(path.stem) + suffix) in beside), None)
    return Clip(clip_id, speaker_id, path, path.with_name(image) if image else None)


class Names:
    """The names in folders by their composed form (NFC); each folder is listed once."""

    def __init__(self) -> None:
        self._listed = functools.cache(_list_names)

    def __call__(self, folder: Path) -> dict[str, list[str]]:
        return self._listed(folder)

    def locate(self, path: Path) -> Path:
        """The path as the disk spells it, if it only differs in Unicode's normal form; else as it is."""
        if os.path.lexists(path):
            return path
        return next(self._spellings(Path(path.anchor), path.parts[bool(path.anchor) :]), path)

    def _spellings(self, folder: Path, parts: Sequence[str]) -> Iterator[Path]:
        if not parts:
            yield folder
            return
        names = [".."] if parts[0] == ".." else self(folder).get(composed(parts[0]), ())
        for name in names:
            yield from self._spellings(folder / name, parts[1:])


def _list_names(folder: Path) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    try:
        for name in sorted(os.listdir(folder)):
            names.setdefault(composed(name), []).append(name)
    except OSError:
        return {}
    return names


def identify_file(path: Path) -> File:
    """Device and inode of a regular file. Raises `ValueError` where there is none, or it cannot be reached."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"no such file: {path}") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path}: not a regular file")
    return found.st_dev, found.st_ino


def composed(text: str) -> str:
    """Text in Unicode's composed normal form, NFC: macOS writes file names decomposed, spreadsheets do not."""
    return unicodedata.normalize("NFC", text)


def spell(kinds: Sequence[str]) -> str:
    """`mp4, mkv`."""
    return ", ".join(suffix[1:] for suffix in kinds)


def check_speakers(root: str | Path, clips: Sequence[Clip], named: set[str]) -> None:
    """Raises `UserError` where folders were taken for speakers that hold speakers instead: `root` lies too high.

    `named`: speakers that a table names; those are taken as they are.
    """
    counts = Counter(clip.speaker_id for clip in clips)
    nested = {clip.speaker_id for clip in clips if clip.clip_id.count("/") > 1}
    first = {clip.clip_id.split("/")[0] for clip in clips if "/" in clip.clip_id}
    for name in sorted((first & counts.keys()) - named):
        alone = len(counts) == 1 and counts[name] > MOST_ALONE and not _VOXCELEB.fullmatch(name)
        if alone or _CONTAINER.fullmatch(name) or (name in nested and _PART.fullmatch(name)):
            raise UserError(
                f"{root}: its folder {name!r} would be taken for one speaker, of {counts[name]} of the {len(clips)} "
                f"clips. If it holds the speakers' folders, give --videos {Path(root) / name}; a column speaker_id in "
                "people.csv, or in a list of clips, says who speaks"
            )


def _walk(root: Path, aliases: list[tuple[str, str]]) -> Iterator[tuple[Path, list[os.DirEntry]]]:
    """Each folder below `root` and its files, folders in the order of their paths; `aliases` fills as they come."""
    seen: dict[File, Path] = {}
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            identity = os.stat(folder)
            first = seen.setdefault((identity.st_dev, identity.st_ino), folder)
            if first is not folder:
                aliases.append((_text(folder.relative_to(root)) + "/", _text(first.relative_to(root)) + "/"))
                continue
            with os.scandir(folder) as listing:
                entries = [entry for entry in listing if not entry.name.startswith(_PASSED_OVER)]
        except OSError as error:
            raise UserError(f"{folder}: this folder cannot be listed ({error.strerror})") from None
        folders = [entry.name for entry in entries if _leads_to_folder(entry)]
        # The slash: paths below "a" come after those below "a b".
        waiting += [folder / name for name in sorted(folders, key=lambda name: f"{name}/", reverse=True)]
        others = set(folders)
        yield folder, [entry for entry in entries if entry.name not in others]


def _leads_to_folder(entry: os.DirEntry) -> bool:
    try:
        if entry.is_symlink():
            return stat.S_ISDIR(entry.stat().st_mode)
        return entry.is_dir()
    except OSError as error:
        suffix = os.path.splitext(entry.name)[1].lower()
        if suffix and suffix not in VIDEO + SOUND + IMAGE:
            return False  # neither a folder of clips nor a clip
        what = "a link that leads nowhere" if entry.is_symlink() else "cannot be read"
        raise UserError(f"{entry.path}: {what} ({error.strerror}); mend or remove it") from None


def _clips_of(root: Path, folder: Path, files: Sequence[os.DirEntry]) -> Iterator[tuple[File, Clip]]:
    """The clips among the files of a folder, still without a speaker; several of one id where names differ only in
    Unicode's normal form or in the case of their endings.
    """
    within = "" if folder == root else _text(folder.relative_to(root)) + "/"
    by_stem: dict[str, dict[str, list[os.DirEntry]]] = {}
    for entry in sorted(files, key=lambda entry: entry.name):
        stem, suffix = os.path.splitext(entry.name)
        if (kind := suffix.lower()) in VIDEO + SOUND + IMAGE:
            by_stem.setdefault(composed(stem), {}).setdefault(kind, []).append(entry)
    for stem, kinds in by_stem.items():
        media = next((suffix for suffix in VIDEO + SOUND if suffix in kinds), None)
        images = [Path(kinds[suffix][0].path) for suffix in IMAGE if suffix in kinds and media in SOUND]
        clip_id = within + _text(Path(stem))
        for entry in kinds.get(media, ()):
            try:
                identity = entry.stat()
            except OSError as error:
                raise UserError(f"{entry.path}: cannot be read ({error.strerror})") from None
            file = identity.st_dev, identity.st_ino
            yield file, Clip(clip_id, "", Path(entry.path), next(iter(images), None))


def _speaker_above(root: Path) -> tuple[str, int]:
    """The name of `root` or its parent if it is one of VoxCeleb's speakers, and the folders that are usual below."""
    for path in (root.absolute(), root.resolve()):
        for folders, name in ((1, path.name), (0, path.parent.name)):
            if _VOXCELEB.fullmatch(name):
                return name, folders
    return "", -1


def _speaker(parts: Sequence[str], above: tuple[str, int]) -> tuple[str, str]:
    """Who speaks in a clip, and the rule that says so."""
    folders = parts[:-1]
    for name in folders:
        if _VOXCELEB.fullmatch(name):
            return name, NAMED
    if len(folders) <= above[1]:
        return above[0], ABOVE
    return parts[0], FIRST if folders else FILE


def _text(path: Path) -> str:
    """Posix text in composed form; bytes that are no UTF-8 are spelt `\\xff`."""
    return composed(os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace"))
