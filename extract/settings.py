"""What the settings of `config.extract` may be: the one place where they are checked."""

from __future__ import annotations

from typing import Any

import ml_collections

from extract import deepface, models, runners
from extract.extractors import EXTRACTORS
from slf_common import rules
from slf_common.rules import Rule, choice, each, integer, real, text
from tfrecords.schema import matrix_constituents

WITHOUT_WINDOWS = ("pyaudioanalysis", "mel", "language")
WITHOUT_WEIGHTS = ("pyaudioanalysis", "mel")


def _windows(value: Any) -> Any:
    each(each(real(above=0), 2, 2), 1).read(value)
    return value  # as it is written: it goes into a dataset's plan


_of_extractors = {
    **{f"{name}.weights": text(empty=False) for name in EXTRACTORS if name not in WITHOUT_WEIGHTS},
    **{
        f"{name}.windows": Rule("pairs of (length, hop) in seconds, as in ((24, 24),)", _windows)
        for name in EXTRACTORS
        if name not in WITHOUT_WINDOWS
    },
}
_extract = {
    "videos": text(),
    "out": text(),
    "attributes": text(),
    "extractors": each(choice(EXTRACTORS), 1, distinct=str),
    "detector": text(empty=False),
    "frames": integer(1),
    "clips_per_shard": integer(1),
    "runner": choice(runners.RUNNERS),
    "workers": integer(0, 2**16),
    "device": choice(runners.DEVICES),
    **_of_extractors,
    "deepface.estimate": each(choice(deepface.MODELS), distinct=str),
    "deepface.engine": choice(deepface.ENGINES),
    "deepface.home": text(),
}
RULES: dict[str, Rule] = {f"extract.{key}": rule for key, rule in _extract.items()}


def check_config(settings: ml_collections.ConfigDict) -> None:
    """Checks `config.extract`, and puts numbers into their own type; loads nothing.

    Raises `UserError`, one line with key, value and what it must be.
    """
    rules.check(settings, RULES, root="extract")
    models.check(settings)
    matrix_constituents(models.planned_schema(settings))
