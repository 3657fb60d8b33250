"""Who speaks: age, gender, ethnicity, language and split of each speaker, from a CSV.

    speaker_id,age,gender,ethnicity,language,split
    id00012,34,female,white,english,train

Only `speaker_id` is needed; an empty cell is unknown. A row with a `clip_id` speaks of that clip alone: what it
gives goes before its speaker's row, and its `speaker_id` before the name of the clip's folder.

A list of clips is such a table with a column `path`, one row a clip, in place of a folder.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import numpy as np

from extract.media import Clip, make_clip
from slf_common.errors import UserError
from tfrecords.schema import LABELS, UNKNOWN, label_index
from tfrecords.writer import SPLITS

COLUMNS = ("speaker_id", "clip_id", "split", "age", *LABELS)
LANGUAGE = "language"  # whose classes are the dataset's own
OLDEST = 120
# Shares of the speakers whose split nobody gave.
TRAIN, VALIDATION = 0.90, 0.05

Attributes = dict[str, float | int]
Row = dict[str, str]


@dataclasses.dataclass
class People:
    """The rows of the CSV; without one, nothing is known of anybody."""

    by_speaker: dict[str, Attributes] = dataclasses.field(default_factory=dict)
    by_clip: dict[str, Attributes] = dataclasses.field(default_factory=dict)
    speakers: dict[str, str] = dataclasses.field(default_factory=dict)  # clip_id -> speaker_id
    splits: dict[str, str] = dataclasses.field(default_factory=dict)  # speaker_id -> split
    languages: list[tuple[Attributes, str, str]] = dataclasses.field(default_factory=list)  # of whom, which, where

    def identify(self, clip: Clip) -> Clip:
        """The clip under the speaker_id that its row gives, if it has a row."""
        return dataclasses.replace(clip, speaker_id=self.speakers.get(clip.clip_id, clip.speaker_id))

    def attributes(self, clip: Clip) -> Attributes:
        """What is known of an identified clip: age in years, the labels as indices."""
        return self.by_speaker.get(clip.speaker_id, {}) | self.by_clip.get(clip.clip_id, {})

    def index_languages(self, names: Sequence[str]) -> None:
        """Turns languages into indices into `names`, the dataset's; they wait for the model that names them.

        Raises `UserError` with the file and line of one that has no such name.
        """
        for attributes, language, where in self.languages:
            try:
                attributes[LANGUAGE] = label_index({LANGUAGE: tuple(names)}, LANGUAGE, language)
            except ValueError as error:
                raise UserError(f"{where}: {error}") from None

    def split(self, speaker_id: str) -> str:
        """The split that the CSV gives, or else one chosen by a hash of the speaker's id."""
        return self.splits.get(speaker_id) or hashed_split(speaker_id)

    def know_any(self, clips: list[Clip]) -> bool:
        """Whether a row speaks of any of these clips."""
        return any(clip.speaker_id in self.by_speaker or clip.clip_id in self.by_clip for clip in clips)


def hashed_split(speaker_id: str) -> str:
    """90 % of speakers train, 5 % validate, 5 % test; the same speaker always the same."""
    share = int.from_bytes(hashlib.sha256(speaker_id.encode()).digest()[:8], "big") / 2**64
    return "train" if share < TRAIN else "validation" if share < TRAIN + VALIDATION else "test"


def read_people(path: str | Path) -> People:
    """Reads the CSV. Raises `UserError` with file and line for whatever is wrong in it."""
    people = People()
    for where, row in _rows(Path(path), COLUMNS, "speaker_id"):
        with _telling(where):
            _add(people, row, where)
    return people


def read_list(path: str | Path) -> tuple[list[Clip], People]:
    """Reads a list of clips: `path` (from the list's own folder, or absolute), `speaker_id` and any other column.

    A clip's id is its row's `clip_id`, or else its path without suffix. Raises `UserError` with file and line for
    a file that is missing, of another kind or listed twice, and whatever is wrong in the table.
    """
    path, people = Path(path), People()
    clips: dict[str, Clip] = {}
    for where, row in _rows(path, ("path", *COLUMNS), "path", "speaker_id"):
        with _telling(where):
            clip = _listed(path.parent, row)
            if clip.clip_id in clips:
                raise ValueError(f"a second row for clip {clip.clip_id!r}")
            clips[clip.clip_id] = clip
            _add(people, row | {"clip_id": clip.clip_id}, where)
    return sorted(clips.values(), key=lambda clip: clip.clip_id), people


def _listed(folder: Path, row: Row) -> Clip:
    path = folder / row["path"]
    if not path.is_file():
        raise ValueError(f"no such file: {path}")
    parts = PurePosixPath(row["path"]).with_suffix("").parts
    plain = "/".join(part for part in parts if part not in ("/", ".", ".."))
    return make_clip(path, row["clip_id"] or plain, row["speaker_id"])


def _rows(path: Path, columns: Sequence[str], *needed: str) -> Iterator[tuple[str, Row]]:
    """The rows of a table, each with its file and line in words; cells that are not there are empty."""
    lines = csv.reader(io.StringIO(_text(path), newline=""))
    header: list[str] = []
    while True:
        with _telling(f"{path}, line {lines.line_num + 1}"):
            cells = next(lines, None)
        if cells is None:
            break
        if not any(cell.strip() for cell in cells):
            continue
        where = f"{path}, line {lines.line_num}"
        with _telling(where):
            if header:
                row = _row(header, cells, columns, needed)
            else:
                header = _header(cells, columns, needed)
                continue
        yield where, row
    if not header:
        raise UserError(f"{path}: the table is empty; its first line names the columns: {', '.join(columns)}")


def _text(path: Path) -> str:
    try:
        # -sig: spreadsheets put a mark before the first column's name.
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot read the table ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; save the table as UTF-8 CSV") from None


@contextmanager
def _telling(where: str) -> Iterator[None]:
    """Inside, a mistake in the table is told with its place."""
    try:
        yield
    except (ValueError, csv.Error) as error:
        raise UserError(f"{where}: {error}") from None


def _header(cells: list[str], columns: Sequence[str], needed: Sequence[str]) -> list[str]:
    header = [cell.strip().lower() for cell in cells]
    for i, name in enumerate(header):
        if name not in columns:
            raise ValueError(f"column {name!r} is none of: {', '.join(columns)}")
        if name in header[:i]:
            raise ValueError(f"column {name!r} stands there twice")
    for name in needed:
        if name not in header:
            raise ValueError(f"there is no column {name}")
    return header


def _row(header: list[str], cells: list[str], columns: Sequence[str], needed: Sequence[str]) -> Row:
    if len(cells) != len(header):
        raise ValueError(f"{len(cells)} cells, but the first line names {len(header)} columns")
    row = dict.fromkeys(columns, "") | {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
    for name in needed:
        if not row[name]:
            raise ValueError(f"{name} is empty")
    return row


def _add(people: People, row: Row, where: str) -> None:
    speaker, clip = row["speaker_id"], row["clip_id"]
    rows, key = (people.by_clip, clip) if clip else (people.by_speaker, speaker)
    if key in rows:
        raise ValueError(f"a second row for {'clip' if clip else 'speaker'} {key!r}")
    rows[key] = _attributes(row)
    if row[LANGUAGE]:
        people.languages.append((rows[key], row[LANGUAGE], where))
    if clip:
        people.speakers[clip] = speaker
    if split := row["split"].lower():
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is none of: {', '.join(SPLITS)}")
        if people.splits.setdefault(speaker, split) != split:
            raise ValueError(f"speaker {speaker!r} is in split {people.splits[speaker]!r} above; a speaker has one")


def _attributes(row: Row) -> Attributes:
    """The values that a row gives, but for the language; what it leaves empty is left out."""
    labels = {name: label_index(LABELS, name, row[name]) for name in LABELS if name != LANGUAGE}
    known: Attributes = {name: index for name, index in labels.items() if index != UNKNOWN}
    age = _age(row["age"])
    return known if math.isnan(age) else known | {"age": age}


def _age(text: str) -> float:
    if not text:
        return np.nan
    try:
        age = float(text)
    except ValueError:
        raise ValueError(f"age {text!r} is not a number of years") from None
    if not 0 <= age <= OLDEST:
        raise ValueError(f"age {text!r} is not between 0 and {OLDEST} years")
    return age
