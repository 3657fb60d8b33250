"""The schema of a record: one clip of one speaker, with its face, labels and constituents.

A constituent is a named block of features: `rows` x `width` float16 values, not normalised. It takes as many rows of
the 256x768 feature matrix (paper, Table 1).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from slf_common.errors import UserError

FACE_SIZE = 128
MATRIX_ROWS, MATRIX_WIDTH = 256, 768

# How a constituent is normalised for the matrix (in `slf_jax.features`).
EMBEDDING = "embedding"  # scaled to unit length times sqrt(width)
CONTINUOUS = "continuous"  # standardised with the mean and std of the dataset
ONE_HOT = "one-hot"  # not changed: class membership, or a min-max scaled number
ASIDE = "aside"  # stored in the record, not part of the matrix


@dataclasses.dataclass(frozen=True)
class Constituent:
    """One block of features: its shape, normalisation and origin."""

    name: str
    rows: int
    width: int
    kind: str
    extractor: str = ""  # framework and version
    weights: str = ""  # digest of the weights, empty if there are none
    windows: str = ""  # description of the windows

    def __post_init__(self) -> None:
        widest = MATRIX_WIDTH if self.kind != ASIDE else self.width
        if not 1 <= self.width <= widest or self.rows < 1:
            raise ValueError(f"{self.name}: {self.rows}x{self.width} does not fit into rows of {MATRIX_WIDTH}")


# The paper's audio constituents, in the order of the matrix. Extractors with other windows have other row counts.
AUDIO_CONSTITUENTS = (
    Constituent("ecapa", 1, 192, EMBEDDING, windows="whole clip"),
    Constituent("pyannote", 26, 512, EMBEDDING, windows="24/24, 12/4, 6/2, 3/2 s"),
    Constituent("titanet", 1, 192, EMBEDDING, windows="whole clip"),
    Constituent("speakernet", 1, 256, EMBEDDING, windows="whole clip"),
    Constituent("pyaudioanalysis", 79, 68, CONTINUOUS, windows="0.5/0.3 s"),
    Constituent("mel", 111, 768, CONTINUOUS, windows="666 frames, six to a row"),
)

# Scores of the spoken languages; the label is the best of them.
LANGUAGE_LOGPROBS = Constituent("language_logprobs", 1, 45, ASIDE, windows="whole clip")

# Class names of each label: those of DeepFace and of SpeechBrain's CommonLanguage, in lower case.
LABELS = {
    "gender": ("female", "male"),
    "ethnicity": ("asian", "indian", "black", "white", "middle eastern", "latino hispanic"),
    "language": (
        "arabic", "basque", "breton", "catalan", "chinese_china", "chinese_hongkong", "chinese_taiwan", "chuvash",
        "czech", "dhivehi", "dutch", "english", "esperanto", "estonian", "french", "frisian", "georgian", "german",
        "greek", "hakha_chin", "indonesian", "interlingua", "italian", "japanese", "kabyle", "kinyarwanda", "kyrgyz",
        "latvian", "maltese", "mongolian", "persian", "polish", "portuguese", "romanian", "romansh_sursilvan",
        "russian", "sakha", "slovenian", "spanish", "swedish", "tamil", "tatar", "turkish", "ukrainian", "welsh",
    ),
}  # fmt: skip
UNKNOWN = -1  # the index of an unknown label; an unknown age is NaN


@dataclasses.dataclass(frozen=True)
class Schema:
    """The constituents and label names of one dataset."""

    constituents: tuple[Constituent, ...]
    labels: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=lambda: dict(LABELS))

    def to_json(self) -> dict:
        return {"constituents": [dataclasses.asdict(c) for c in self.constituents], "labels": self.labels}

    @classmethod
    def from_json(cls, data: dict) -> Schema:
        return cls(
            tuple(Constituent(**c) for c in data["constituents"]),
            {name: tuple(names) for name, names in data["labels"].items()},
        )


def matrix_constituents(schema: Schema) -> tuple[Constituent, ...]:
    """The constituents of the 256x768 matrix, in order.

    These are the paper's audio constituents (with the dataset's shape if it has them), the dataset's other ones, then
    language, age, gender and ethnicity. Raises `UserError` with the row counts if they do not fit into 256 rows.
    """
    own = {part.name: part for part in schema.constituents if part.kind != ASIDE}
    parts = [own.pop(part.name, part) for part in AUDIO_CONSTITUENTS] + list(own.values())
    widths = {"age": 1, **{name: len(names) for name, names in schema.labels.items()}}
    parts += [Constituent(name, 1, widths[name], ONE_HOT) for name in ("language", "age", "gender", "ethnicity")]
    if sum(part.rows for part in parts) > MATRIX_ROWS:
        raise UserError(f"the matrix has {MATRIX_ROWS} rows, the constituents need {format_rows(parts)}")
    return tuple(parts)


def format_rows(parts: Sequence[Constituent]) -> str:
    """Formats row counts and their sum: `ecapa 1 + pyannote 26 + ... = 223`."""
    return " + ".join(f"{part.name} {part.rows}" for part in parts) + f" = {sum(part.rows for part in parts)}"


def label_index(labels: dict[str, tuple[str, ...]], kind: str, value: str) -> int:
    """The index of a class name in any case; `UNKNOWN` for an empty value. Raises `ValueError` for other names."""
    value = value.strip().lower()
    if not value:
        return UNKNOWN
    if value not in labels[kind]:
        raise ValueError(f"{kind} {value!r} must be one of {', '.join(labels[kind])}")
    return labels[kind].index(value)
