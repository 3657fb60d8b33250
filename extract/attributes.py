"""Reads age, gender, ethnicity, language and split of each speaker from a CSV.

    speaker_id,age,gender,ethnicity,language,split
    id00012,34,female,white,english,train

Only the column `speaker_id` is required; an empty cell means unknown. A row with a `clip_id` applies to that clip
only: its values take precedence over the speaker's row, and its `speaker_id` over the name of the clip's folder.

The tables published with VoxCeleb (vox1_meta.csv, vox2_meta.csv) and CREMA-D (VideoDemographics.csv) can be given as
they are: see `PUBLISHED` and `ALIASES`.

A clip list is such a table with a column `path` and one row for each clip; it is given instead of a folder.

Ids match in any Unicode normal form, with backslashes or slashes, with a leading "./" or a file's suffix. An id that
differs from one on disk only in case or in leading zeros (`1` and `001`) is rejected with both spellings: they may
be two people, and one person under two spellings could end up in two splits. Unmatched rows and clips are counted and
reported; an unmatched row with a split is rejected.
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

from extract.clips import Clip, DirectoryCache, FileKey, compose, file_key, make_clip
from extract.matching import IdIndex, format_examples, group_similar
from slf_common.errors import UserError
from tfrecords.schema import LABELS, UNKNOWN, label_index
from tfrecords.writer import SPLITS

COLUMNS = ("speaker_id", "clip_id", "split", "age", *LABELS)
LANGUAGE = "language"  # the label whose classes depend on the dataset
MAX_AGE = 120
# Further columns of published tables. VoxCeleb's set is dev or test. CREMA-D's column ethnicity, which stands beside a
# race, says only who is Hispanic.
FACES, SET, HISPANIC = "vggface1 id", "set", "hispanic"
UNUSED = ("vggface2 id", "name", "nationality")
PUBLISHED = (FACES, SET, HISPANIC, *UNUSED)
ALIASES = {
    "voxceleb1 id": "speaker_id", "voxceleb2 id": "speaker_id", "actorid": "speaker_id",
    "sex": "gender", "race": "ethnicity",
}  # fmt: skip
VALUES = {
    "gender": {"m": "male", "f": "female"},
    "ethnicity": {"caucasian": "white", "african american": "black", "unknown": ""},
}
# Shares of the speakers that the table assigns to no split; the rest is for testing.
TRAIN_SHARE, VALIDATION_SHARE = 0.90, 0.05

Attributes = dict[str, float | int]
Row = dict[str, str]


@dataclasses.dataclass
class AttributeTable:
    """The rows of the CSV; empty if there is none."""

    by_speaker: dict[str, Attributes] = dataclasses.field(default_factory=dict)
    by_clip: dict[str, Attributes] = dataclasses.field(default_factory=dict)
    speakers: dict[str, str] = dataclasses.field(default_factory=dict)  # clip_id -> speaker_id
    splits: dict[str, str] = dataclasses.field(default_factory=dict)  # speaker_id -> split
    languages: list[tuple[Attributes, str, str]] = dataclasses.field(default_factory=list)  # attributes, name, position
    faces: dict[str, str] = dataclasses.field(default_factory=dict)  # speaker_id -> folder of VoxCeleb1's face crops

    def identify(self, clip: Clip) -> Clip:
        """Returns the clip with the speaker_id of its row, if it has one."""
        return dataclasses.replace(clip, speaker_id=self.speakers.get(clip.clip_id, clip.speaker_id))

    def attributes(self, clip: Clip) -> Attributes:
        """Returns the known attributes of an identified clip: age in years, labels as class indices."""
        return self.by_speaker.get(clip.speaker_id, {}) | self.by_clip.get(clip.clip_id, {})

    def index_languages(self, names: Sequence[str]) -> None:
        """Converts the languages to indices into `names`, the dataset's classes, which come from the language model.

        Raises `UserError` with file and line for a language that is not in `names`.
        """
        for attributes, language, position in self.languages:
            try:
                attributes[LANGUAGE] = label_index({LANGUAGE: tuple(names)}, LANGUAGE, language)
            except ValueError as error:
                raise UserError(f"{position}: {error}") from None

    def has_row(self, clip: Clip) -> bool:
        """Whether there is a row for an identified clip or its speaker."""
        return clip.clip_id in self.by_clip or clip.speaker_id in self.by_speaker

    def split(self, speaker_id: str) -> str:
        """Returns the split in the CSV, or else the `hashed_split` of the speaker."""
        return self.splits.get(speaker_id) or hashed_split(speaker_id)


def hashed_split(speaker_id: str) -> str:
    """Returns a split chosen by a hash of the speaker's id: 90 % train, 5 % validation, 5 % test."""
    share = int.from_bytes(hashlib.sha256(speaker_id.encode()).digest()[:8], "big") / 2**64
    return "train" if share < TRAIN_SHARE else "validation" if share < TRAIN_SHARE + VALIDATION_SHARE else "test"


def read_attributes(path: str | Path, clips: Sequence[Clip]) -> tuple[AttributeTable, list[str]]:
    """Reads the CSV for these clips; returns the table, and lines that describe unmatched rows and clips.

    Raises `UserError` with file and line for a mistake in the CSV, a row with a split that matches no clip, or an id
    that differs from one on disk only in case or leading zeros, and `UserError` if no row matches at all.
    """
    path, table = Path(path), AttributeTable()
    rows, folders, ids = [], IdIndex(clip.speaker_id for clip in clips), IdIndex(clip.clip_id for clip in clips)
    for position, row in _rows(path, COLUMNS, "speaker_id", published=True):
        with _report_position(position):
            row["speaker_id"] = folders.find(row["speaker_id"]) or compose(row["speaker_id"])
            if row["clip_id"]:
                row["clip_id"] = ids.find(row["clip_id"]) or compose(row["clip_id"])
            _add(table, row, position)
        rows.append((position, row))
    speakers = IdIndex(table.identify(clip).speaker_id for clip in clips)
    _check_spellings(speakers.ids, folders.ids, rows)
    unmatched = []
    for position, row in rows:
        known = ids if row["clip_id"] else speakers
        if (row["clip_id"] or row["speaker_id"]) not in known.ids:
            _check_unmatched(position, row, known, table)
            unmatched.append((position, row))
    if clips and rows and len(unmatched) == len(rows):
        raise UserError(
            f"{path}: no row matches a speaker or clip on disk; the first on disk are speaker {clips[0].speaker_id!r} "
            f"and clip {clips[0].clip_id!r}"
        )
    notes = _describe_published(path, rows) + _describe_unmatched(path, table, clips, unmatched) if rows else []
    return table, notes


def _check_spellings(speakers: set[str], folders: set[str], rows: Sequence[tuple[str, Row]]) -> None:
    """Raises `UserError` if the table creates two speakers whose ids differ only in case or leading zeros."""
    for spellings in group_similar(speakers).values():
        given = [name for name in spellings if name not in folders]
        if given and len(spellings) > 1:
            position = next(position for position, row in rows if row["speaker_id"] == given[0])
            other = next(name for name in spellings if name != given[0])
            raise UserError(
                f"{position}: speaker {given[0]!r} and speaker {other!r} would be two people, maybe in two splits; "
                "write one person's id the same way everywhere"
            )


def _check_unmatched(position: str, row: Row, ids: IdIndex, table: AttributeTable) -> None:
    """Raises `UserError` for an unmatched row that has a split or resembles an id without a row."""
    what, name = ("clip", row["clip_id"]) if row["clip_id"] else ("speaker", row["speaker_id"])
    rows = table.by_clip if row["clip_id"] else table.by_speaker
    for other in ids.find_similar(name):
        if other not in rows:
            raise UserError(
                f"{position}: no {what} {name!r}, but {other!r}, which has no row; write both the same way "
                "(spreadsheets drop leading zeros: import such columns as text)"
            )
    if row["split"]:
        raise UserError(
            f"{position}: split {row['split']!r} for {what} {name!r}, but there is no such {what}; correct the id or "
            "remove the row; otherwise a person of this split could end up in another"
        )


def _describe_published(path: Path, rows: Sequence[tuple[str, Row]]) -> list[str]:
    """Describes the columns of a published table that are not used, and how it divides the speakers."""
    filled = [name for name in PUBLISHED if any(row[name] for _, row in rows)]
    unused = [repr(name) for name in filled if name in UNUSED]
    lines = [f"{path}: columns that are not used: {', '.join(unused)}"] if unused else []
    if SET in filled:
        lines.append(f"{path}: the column {SET!r} gives the splits; a hash puts 5 % of the dev speakers in validation")
    return lines


def _describe_unmatched(
    path: Path, table: AttributeTable, clips: Sequence[Clip], unmatched: Sequence[tuple[str, Row]]
) -> list[str]:
    lines = []
    if unmatched:
        named = [f"{row['clip_id'] or row['speaker_id']!r} ({_line(position)})" for position, row in unmatched]
        lines.append(f"{path}: {len(unmatched)} rows match no clip: {format_examples(named)}")
    without_row = [clip for clip in map(table.identify, clips) if not table.has_row(clip)]
    if without_row:
        speakers = sorted({clip.speaker_id for clip in without_row})
        lines.append(
            f"{path}: {len(without_row)} clips of {len(speakers)} speakers have no row, so it gives no attributes for "
            f"them and a hash chooses their split: {format_examples([repr(name) for name in speakers])}"
        )
    return lines


def _line(position: str) -> str:
    """`line 7` of `people.csv, line 7`."""
    return position.rpartition(", ")[2]


def read_clip_list(path: str | Path) -> tuple[list[Clip], AttributeTable]:
    """Reads a clip list: `path` (relative to the list's folder, or absolute), `speaker_id` and any other column.

    A clip's id is its row's `clip_id`, or else its path without suffix. Raises `UserError` with file and line for
    a file that is missing, of an unsupported kind or listed twice (also under two names), and for any other mistake in
    the table.
    """
    path, table, directories = Path(path), AttributeTable(), DirectoryCache()
    clips: dict[str, Clip] = {}
    files: dict[FileKey, str] = {}
    rows = []
    for position, row in _rows(path, ("path", *COLUMNS), "path", "speaker_id"):
        with _report_position(position):
            clip, file = _listed_clip(path.parent, row, directories)
            if clip.clip_id in clips:
                raise ValueError(f"a second row for clip {clip.clip_id!r}")
            first = files.setdefault(file, position)
            if first != position:
                raise ValueError(f"{row['path']} is the file of {_line(first)} under another name")
            clips[clip.clip_id] = clip
            row |= {"clip_id": clip.clip_id, "speaker_id": clip.speaker_id}
            _add(table, row, position)
        rows.append((position, row))
    _check_spellings({clip.speaker_id for clip in clips.values()}, set(), rows)
    return sorted(clips.values(), key=lambda clip: clip.clip_id), table


def _listed_clip(folder: Path, row: Row, directories: DirectoryCache) -> tuple[Clip, FileKey]:
    path = directories.locate(folder / row["path"])
    if not os.path.exists(path) and "\\" in row["path"]:
        path = directories.locate(folder / row["path"].replace("\\", "/"))
    file = file_key(path)
    parts = PurePosixPath(compose(row["path"]).replace("\\", "/")).with_suffix("").parts
    plain = "/".join(part for part in parts if part not in ("/", ".", ".."))
    return make_clip(path, compose(row["clip_id"]) or plain, compose(row["speaker_id"]), directories), file


def _rows(path: Path, columns: Sequence[str], *required: str, published: bool = False) -> Iterator[tuple[str, Row]]:
    """Yields the rows of a table with their position, `FILE, line N`; the cells of absent columns are empty.

    Cells are separated by commas or, if there is one in the first line, tabs. `published`: the
    table may have the columns of published ones.
    """
    text = _text(path)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if "\t" in text.partition("\n")[0] else ",")
    header: list[str] = []
    while True:
        with _report_position(f"{path}, line {lines.line_num + 1}"):
            cells = next(lines, None)
        if cells is None:
            break
        if not any(cell.strip() for cell in cells):
            continue
        position = f"{path}, line {lines.line_num}"
        with _report_position(position):
            if header:
                row = _row(header, cells, columns, required)
            else:
                header = _header(cells, columns, required, published)
                continue
        yield position, row
    if not header:
        raise UserError(f"{path}: the table is empty; its first line must name the columns: {', '.join(columns)}")


def _text(path: Path) -> str:
    try:
        # -sig: spreadsheets write a byte order mark before the first column's name.
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot read the table ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; save the table as UTF-8 CSV") from None


@contextmanager
def _report_position(position: str) -> Iterator[None]:
    """Turns a mistake in the table into a `UserError` with its position."""
    try:
        yield
    except (ValueError, csv.Error) as error:
        raise UserError(f"{position}: {error}") from None


def _header(cells: list[str], columns: Sequence[str], required: Sequence[str], published: bool) -> list[str]:
    header = [cell.strip().lower() for cell in cells]
    if published:
        beside_race = {"ethnicity": HISPANIC} if "race" in header else {}
        header = [(ALIASES | beside_race).get(name, name) for name in header]
    for i, name in enumerate(header):
        if name not in (*columns, *(PUBLISHED if published else ())):
            raise ValueError(f"column {name!r} must be one of {', '.join(columns)}")
        if name in header[:i]:
            raise ValueError(f"column {name!r} appears twice")
    for name in required:
        if name not in header:
            raise ValueError(f"the column {name} is missing")
    return header


def _row(header: list[str], cells: list[str], columns: Sequence[str], required: Sequence[str]) -> Row:
    if len(cells) != len(header):
        raise ValueError(f"{len(cells)} cells, but the header has {len(header)} columns")
    row = dict.fromkeys((*columns, *PUBLISHED), "") | {
        name: cell.strip() for name, cell in zip(header, cells, strict=True)
    }
    for name in required:
        if not row[name]:
            raise ValueError(f"{name} is empty")
    return row


def _add(table: AttributeTable, row: Row, position: str) -> None:
    speaker, clip = row["speaker_id"], row["clip_id"]
    rows, key = (table.by_clip, clip) if clip else (table.by_speaker, speaker)
    if key in rows:
        raise ValueError(f"a second row for {'clip' if clip else 'speaker'} {key!r}")
    rows[key] = _attributes(row)
    if row[LANGUAGE]:
        table.languages.append((rows[key], row[LANGUAGE], position))
    if clip:
        table.speakers[clip] = speaker
    if row[FACES]:
        table.faces[speaker] = row[FACES]
    if split := row["split"].lower() or _split_of_set(speaker, row[SET]):
        if split not in SPLITS:
            raise ValueError(f"split {split!r} must be one of {', '.join(SPLITS)}")
        if table.splits.setdefault(speaker, split) != split:
            raise ValueError(f"speaker {speaker!r} is in split {table.splits[speaker]!r} above and can have only one")


def _split_of_set(speaker_id: str, value: str) -> str:
    """Returns the split of a speaker in VoxCeleb's part dev (for training and validation) or test; "" for no part."""
    if value.lower() == "dev":
        return "validation" if hashed_split(speaker_id) == "validation" else "train"
    if value.lower() not in ("", "test"):
        raise ValueError(f"set {value!r} must be dev or test")
    return value.lower()


def _attributes(row: Row) -> Attributes:
    """Returns the values of a row without empty cells and without the language."""
    cells = {name: VALUES.get(name, {}).get(row[name].lower(), row[name]) for name in LABELS if name != LANGUAGE}
    if row[HISPANIC].lower() == "hispanic":
        cells["ethnicity"] = "latino hispanic"
    labels = {name: label_index(LABELS, name, cell) for name, cell in cells.items()}
    known: Attributes = {name: index for name, index in labels.items() if index != UNKNOWN}
    age = _age(row["age"])
    return known if math.isnan(age) else known | {"age": age}


def _age(text: str) -> float:
    if not text:
        return math.nan
    try:
        age = float(text)
    except ValueError:
        raise ValueError(f"age {text!r} is not a number of years") from None
    if not 0 <= age <= MAX_AGE:
        raise ValueError(f"age {text!r} is not between 0 and {MAX_AGE} years")
    return age
