"""What a record holds: one clip of one speaker, its face and its constituents.

A constituent is one named block of features: `rows` x `width` float16 values, raw (not normalised).
Its rows are the rows it takes in the 256x768 feature matrix (paper, Table 1).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from slf_common.errors import UserError

FACE_SIZE = 128
MATRIX_ROWS, MATRIX_WIDTH = 256, 768

# How a constituent is normalised on its way into the matrix (`slf_jax.features`).
EMBEDDING = "embedding"  # to unit length times sqrt(width)
CONTINUOUS = "continuous"  # standardised with the dataset's mean and std
ONE_HOT = "one-hot"  # as it is: class membership, or a min-max scaled number
ASIDE = "aside"  # kept in the record, no row in the matrix


@dataclasses.dataclass(frozen=True)
class Constituent:
    """One block of features: its shape, how it is normalised, and where it came from."""

    name: str
    rows: int
    width: int
    kind: str
    extractor: str = ""  # framework and its version
    weights: str = ""  # digest of the weights, empty where there are none
    windows: str = ""  # window scheme, in words

    def __post_init__(self) -> None:
        if not 1 <= self.width <= MATRIX_WIDTH or self.rows < 1:
            raise ValueError(f"{self.name}: {self.rows}x{self.width} does not fit rows of {MATRIX_WIDTH}")


# The paper's audio constituents in the matrix's order. Extractors may bring other windows, hence other row counts.
AUDIO_CONSTITUENTS = (
    Constituent("ecapa", 1, 192, EMBEDDING, windows="whole clip"),
    Constituent("pyannote", 26, 512, EMBEDDING, windows="24/24, 12/4, 6/2, 3/2 s"),
    Constituent("titanet", 1, 192, EMBEDDING, windows="whole clip"),
    Constituent("speakernet", 1, 256, EMBEDDING, windows="whole clip"),
    Constituent("pyaudioanalysis", 79, 68, CONTINUOUS, windows="0.5/0.3 s"),
    Constituent("mel", 111, 768, CONTINUOUS, windows="666 frames, six to a row"),
)

# Scores of the spoken languages, beside the label that they decide.
LANGUAGE_LOGPROBS = Constituent("language_logprobs", 1, 45, ASIDE, windows="whole clip")

# Class names of each label, spelt as DeepFace and SpeechBrain's CommonLanguage spell them, in lower case.
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
UNKNOWN = -1  # a label nobody gave; an unknown age is NaN


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
    """What has rows in the 256x768 matrix, in order: the paper's audio constituents (in the dataset's shape, if it
    has them), the dataset's own further ones, then language, age, gender, ethnicity.

    Raises `UserError` with the sum spelled out where they do not fit 256 rows.
    """
    own = {part.name: part for part in schema.constituents if part.kind != ASIDE}
    parts = [own.pop(part.name, part) for part in AUDIO_CONSTITUENTS] + list(own.values())
    widths = {"age": 1, **{name: len(names) for name, names in schema.labels.items()}}
    parts += [Constituent(name, 1, widths[name], ONE_HOT) for name in ("language", "age", "gender", "ethnicity")]
    if sum(part.rows for part in parts) > MATRIX_ROWS:
        raise UserError(f"the matrix has {MATRIX_ROWS} rows, the constituents need {spell_rows(parts)}")
    return tuple(parts)


def spell_rows(parts: Sequence[Constituent]) -> str:
    """`ecapa 1 + pyannote 26 + ... = 223`."""
    return " + ".join(f"{part.name} {part.rows}" for part in parts) + f" = {sum(part.rows for part in parts)}"


def label_index(labels: dict[str, tuple[str, ...]], kind: str, value: str) -> int:
    """Index of a class given in any case, `UNKNOWN` for an empty value; `ValueError` for a name nobody knows."""
    value = value.strip().lower()
    if not value:
        return UNKNOWN
    if value not in labels[kind]:
        raise ValueError(f"{kind} {value!r} is none of: {', '.join(labels[kind])}")
    return labels[kind].index(value)
