"""Who speaks: age, gender, ethnicity, language and split of each speaker, from a CSV.

    speaker_id,age,gender,ethnicity,language,split
    id00012,34,female,white,english,train

Only `speaker_id` is needed; an empty cell is unknown. A row with a `clip_id` speaks of that clip alone: what it
gives goes before its speaker's row, and its `speaker_id` before the name of the clip's folder.

A list of clips is such a table with a column `path`, one row a clip, in place of a folder.

Ids match in any normal form of Unicode, with backslashes or slashes, with a leading "./" or a file's ending. An id
that differs from one on disk in case or in leading zeros only (`1` for `001`) is refused with both spellings: they may
be two people, and one person in two spellings could end up in two splits. Rows and clips without a partner are
counted and shown; a row with a split that matches nothing is refused.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import numpy as np

from extract.clips import Clip, File, Names, composed, identify_file, make_clip
from extract.matching import Ids, examples, group
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

    def know(self, clip: Clip) -> bool:
        """Whether a row speaks of an identified clip or its speaker."""
        return clip.clip_id in self.by_clip or clip.speaker_id in self.by_speaker

    def split(self, speaker_id: str) -> str:
        """The split that the CSV gives, or else one chosen by a hash of the speaker's id."""
        return self.splits.get(speaker_id) or hashed_split(speaker_id)


def hashed_split(speaker_id: str) -> str:
    """90 % of speakers train, 5 % validate, 5 % test; the same speaker always the same."""
    share = int.from_bytes(hashlib.sha256(speaker_id.encode()).digest()[:8], "big") / 2**64
    return "train" if share < TRAIN else "validation" if share < TRAIN + VALIDATION else "test"


def read_people(path: str | Path, clips: Sequence[Clip]) -> tuple[People, list[str]]:
    """Reads the CSV for these clips; returns what it says, and lines that tell what has no partner.

    Raises `UserError` with file and line for whatever is wrong in it, a row with a split that matches no clip, an id
    spelt nearly like one on disk, and where no row matches at all.
    """
    path, people = Path(path), People()
    rows, folders, ids = [], Ids(clip.speaker_id for clip in clips), Ids(clip.clip_id for clip in clips)
    for where, row in _rows(path, COLUMNS, "speaker_id"):
        with _telling(where):
            row["speaker_id"] = folders.find(row["speaker_id"]) or composed(row["speaker_id"])
            if row["clip_id"]:
                row["clip_id"] = ids.find(row["clip_id"]) or composed(row["clip_id"])
            _add(people, row, where)
        rows.append((where, row))
    speaking = Ids(people.identify(clip).speaker_id for clip in clips)
    _check_spellings(speaking.ids, folders.ids, rows)
    lost = [
        (where, row)
        for where, row in rows
        if (row["clip_id"] or row["speaker_id"]) not in _kind(row, ids, speaking).ids
    ]
    for where, row in lost:
        _check_lost(where, row, _kind(row, ids, speaking), people)
    if clips and rows and len(lost) == len(rows):
        raise UserError(
            f"{path}: none of its rows is of a speaker or a clip here; the first is {clips[0].speaker_id!r}, "
            f"with {clips[0].clip_id!r}"
        )
    return people, _tell_partnerless(path, people, clips, lost) if rows else []


def _kind(row: Row, clips: Ids, speakers: Ids) -> Ids:
    return clips if row["clip_id"] else speakers


def _check_spellings(speaking: set[str], folders: set[str], rows: Sequence[tuple[str, Row]]) -> None:
    """Raises `UserError` where a table makes two speakers of ids that differ in case or zeros only."""
    for spellings in group(speaking).values():
        given = [name for name in spellings if name not in folders]
        if given and len(spellings) > 1:
            where = next(where for where, row in rows if row["speaker_id"] == given[0])
            other = next(name for name in spellings if name != given[0])
            raise UserError(
                f"{where}: speaker {given[0]!r} and speaker {other!r} would be two people, maybe in two splits; "
                "spell one person's id the same everywhere"
            )


def _check_lost(where: str, row: Row, ids: Ids, people: People) -> None:
    """Raises `UserError` for a row without a partner that has a split, or nearly has a partner."""
    what, name = ("clip", row["clip_id"]) if row["clip_id"] else ("speaker", row["speaker_id"])
    rows = people.by_clip if row["clip_id"] else people.by_speaker
    for other in ids.near(name):
        if other not in rows:
            raise UserError(
                f"{where}: there is no {what} {name!r}, but {other!r}, which has no row; spell them alike "
                "(spreadsheets drop leading zeros: import such columns as text)"
            )
    if row["split"]:
        raise UserError(
            f"{where}: split {row['split']!r} for {what} {name!r}, but there is no such {what}; correct the id, or "
            "remove the row, so that nobody is trained on who was meant for another split"
        )


def _tell_partnerless(path: Path, people: People, clips: Sequence[Clip], lost: Sequence[tuple[str, Row]]) -> list[str]:
    lines = []
    if lost:
        named = [f"{row['clip_id'] or row['speaker_id']!r} ({where.rpartition(', ')[2]})" for where, row in lost]
        lines.append(f"{path}: {len(lost)} rows match no clip: {examples(named)}")
    alone = [clip for clip in map(people.identify, clips) if not people.know(clip)]
    if alone:
        speakers = sorted({clip.speaker_id for clip in alone})
        lines.append(
            f"{path}: {len(alone)} clips of {len(speakers)} speakers have no row, so their split is chosen by a hash: "
            f"{examples([repr(name) for name in speakers])}"
        )
    return lines


def read_list(path: str | Path) -> tuple[list[Clip], People]:
    """Reads a list of clips: `path` (from the list's own folder, or absolute), `speaker_id` and any other column.

    A clip's id is its row's `clip_id`, or else its path without suffix. Raises `UserError` with file and line for
    a file that is missing, of another kind or listed twice (under another name as well), and whatever is wrong in the
    table.
    """
    path, people, names = Path(path), People(), Names()
    clips, files, rows = {}, {}, []
    for where, row in _rows(path, ("path", *COLUMNS), "path", "speaker_id"):
        with _telling(where):
            clip, file = _listed(path.parent, row, names)
            if clip.clip_id in clips:
                raise ValueError(f"a second row for clip {clip.clip_id!r}")
            first = files.setdefault(file, where)
            if first != where:
                raise ValueError(f"{row['path']} is the file of {first.rpartition(', ')[2]} under another name")
            clips[clip.clip_id] = clip
            row |= {"clip_id": clip.clip_id, "speaker_id": clip.speaker_id}
            _add(people, row, where)
        rows.append((where, row))
    _check_spellings({clip.speaker_id for clip in clips.values()}, set(), rows)
    return sorted(clips.values(), key=lambda clip: clip.clip_id), people


def _listed(folder: Path, row: Row, names: Names) -> tuple[Clip, File]:
    path = names.locate(folder / row["path"])
    if not os.path.exists(path) and "\\" in row["path"]:
        path = names.locate(folder / row["path"].replace("\\", "/"))
    file = identify_file(path)
    parts = PurePosixPath(composed(row["path"]).replace("\\", "/")).with_suffix("").parts
    plain = "/".join(part for part in parts if part not in ("/", ".", ".."))
    return make_clip(path, composed(row["clip_id"]) or plain, composed(row["speaker_id"]), names), file


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
