"""Who speaks: age, gender, ethnicity, language and split of each speaker, from a CSV.

    speaker_id,age,gender,ethnicity,language,split
    id00012,34,female,white,english,train

Only `speaker_id` is needed; an empty cell is unknown. A row with a `clip_id` speaks of that clip alone: what it
gives goes before its speaker's row, and its `speaker_id` before the name of the clip's folder.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import math
from pathlib import Path

import numpy as np

from extract.media import Clip
from tfrecords.cli import UserError
from tfrecords.schema import LABELS, UNKNOWN, label_index
from tfrecords.writer import SPLITS

COLUMNS = ("speaker_id", "clip_id", "split", "age", *LABELS)
OLDEST = 120
# Shares of the speakers whose split nobody gave.
TRAIN, VALIDATION = 0.90, 0.05

Attributes = dict[str, float | int]


@dataclasses.dataclass
class People:
    """The rows of the CSV; without one, nothing is known of anybody."""

    by_speaker: dict[str, Attributes] = dataclasses.field(default_factory=dict)
    by_clip: dict[str, Attributes] = dataclasses.field(default_factory=dict)
    speakers: dict[str, str] = dataclasses.field(default_factory=dict)  # clip_id -> speaker_id
    splits: dict[str, str] = dataclasses.field(default_factory=dict)  # speaker_id -> split

    def identify(self, clip: Clip) -> Clip:
        """The clip under the speaker_id that its row gives, if it has a row."""
        return dataclasses.replace(clip, speaker_id=self.speakers.get(clip.clip_id, clip.speaker_id))

    def attributes(self, clip: Clip) -> Attributes:
        """What is known of an identified clip: age in years, the labels as indices into `LABELS`."""
        return self.by_speaker.get(clip.speaker_id, {}) | self.by_clip.get(clip.clip_id, {})

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
    path = Path(path)
    try:
        # -sig: spreadsheets put a mark before the first column's name.
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot read the attributes ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; save the table as UTF-8 CSV") from None
    return _read(path, csv.reader(io.StringIO(text, newline="")))


def _read(path: Path, rows: csv.reader) -> People:
    people = People()
    header: list[str] = []
    try:
        for cells in rows:
            if not any(cell.strip() for cell in cells):
                continue
            if header:
                _add(people, _row(header, cells))
            else:
                header = _header(cells)
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path}, line {rows.line_num}: {error}") from None
    if not header:
        raise UserError(f"{path}: the table is empty; its first line names the columns: {', '.join(COLUMNS)}")
    return people


def _header(cells: list[str]) -> list[str]:
    header = [cell.strip().lower() for cell in cells]
    for i, name in enumerate(header):
        if name not in COLUMNS:
            raise ValueError(f"column {name!r} is none of: {', '.join(COLUMNS)}")
        if name in header[:i]:
            raise ValueError(f"column {name!r} stands there twice")
    if "speaker_id" not in header:
        raise ValueError("there is no column speaker_id")
    return header


def _row(header: list[str], cells: list[str]) -> dict[str, str]:
    if len(cells) != len(header):
        raise ValueError(f"{len(cells)} cells, but the first line names {len(header)} columns")
    row = dict.fromkeys(COLUMNS, "") | {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
    if not row["speaker_id"]:
        raise ValueError("speaker_id is empty")
    return row


def _add(people: People, row: dict[str, str]) -> None:
    speaker, clip = row["speaker_id"], row["clip_id"]
    rows, key = (people.by_clip, clip) if clip else (people.by_speaker, speaker)
    if key in rows:
        raise ValueError(f"a second row for {'clip' if clip else 'speaker'} {key!r}")
    rows[key] = _attributes(row)
    if clip:
        people.speakers[clip] = speaker
    if split := row["split"].lower():
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is none of: {', '.join(SPLITS)}")
        if people.splits.setdefault(speaker, split) != split:
            raise ValueError(f"speaker {speaker!r} is in split {people.splits[speaker]!r} above; a speaker has one")


def _attributes(row: dict[str, str]) -> Attributes:
    """The values that a row gives; what it leaves empty is left out."""
    labels = {name: label_index(LABELS, name, row[name]) for name in LABELS}
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
