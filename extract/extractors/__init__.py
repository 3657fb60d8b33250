"""Extractors: each turns the sound of clips into one constituent, and lives in its own file with its framework."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from extract.media import CLIP_SECONDS
from slf_common.errors import UserError
from tfrecords.schema import AUDIO_CONSTITUENTS, LANGUAGE_LOGPROBS, Constituent

Windows = Sequence[tuple[float, float]]  # (length, hop) in seconds


class Extractor(Protocol):
    """Computes one constituent. Making one loads its weights."""

    constituent: Constituent

    def __call__(self, waves: np.ndarray) -> np.ndarray:
        """Clips of 24 s at 16 kHz, float32 [clips, 384000], to float32 [clips, rows, width].

        Each clip's result depends on that clip alone. What cannot be computed is NaN.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where an extractor is found: its module has `load(settings) -> Extractor`."""

    module: str
    extra: str  # of setup.py, that installs its framework
    planned: Constituent  # as the paper has it


_PAPER = {part.name: part for part in AUDIO_CONSTITUENTS}
EXTRACTORS = {
    "ecapa": Entry("extract.extractors.ecapa", "extract", _PAPER["ecapa"]),
    "pyannote": Entry("extract.extractors.pyannote", "extract", _PAPER["pyannote"]),
    "titanet": Entry("extract.extractors.nemo", "extract", _PAPER["titanet"]),
    "speakernet": Entry("extract.extractors.nemo", "extract", _PAPER["speakernet"]),
    "pyaudioanalysis": Entry("extract.extractors.pyaudioanalysis", "demo", _PAPER["pyaudioanalysis"]),
    "mel": Entry("extract.extractors.mel", "demo", _PAPER["mel"]),
    "language": Entry("extract.extractors.language", "extract", LANGUAGE_LOGPROBS),
}


def plan(settings: Mapping) -> list[Constituent]:
    """The constituents that `config.extract` asks for, without loading anything.

    Widths are those of the paper's models; other weights may bring others. Raises `UserError` for windows that do not
    fit a clip.
    """
    return [_plan(name, settings.get(name, {})) for name in settings["extractors"]]


def _plan(name: str, settings: Mapping) -> Constituent:
    planned = EXTRACTORS[name].planned
    if "windows" not in settings:
        return planned
    rows = sum(count_windows(name, length, hop) for length, hop in settings["windows"])
    return dataclasses.replace(planned, rows=rows, windows=spell_windows(settings["windows"]))


def count_windows(name: str, length: float, hop: float) -> int:
    """How many windows of `length` every `hop` seconds fit a clip; `UserError` if none."""
    if length > CLIP_SECONDS:
        raise UserError(
            f"config.extract.{name}.windows: {length:g} s every {hop:g} s does not fit clips of {CLIP_SECONDS} s"
        )
    return int((CLIP_SECONDS - length) / hop + 1e-9) + 1


def spell_windows(windows: Windows) -> str:
    """`12/4, 6/2 s`."""
    if tuple(map(tuple, windows)) == ((CLIP_SECONDS, CLIP_SECONDS),):
        return "whole clip"
    return ", ".join(f"{length:g}/{hop:g}" for length, hop in windows) + " s"


def load(settings: Mapping) -> list[Extractor]:
    """The extractors of `config.extract` (checked before, by `extract.settings`), their weights loaded, in its order.

    Raises `UserError` for what `plan` refuses, a package that is not installed, or weights that are missing.
    """
    plan(settings)
    return [_load(name, settings.get(name, {})) for name in settings["extractors"]]


def _load(name: str, settings: Mapping) -> Extractor:
    entry = EXTRACTORS[name]
    try:
        return importlib.import_module(entry.module).load({"name": name, **settings})
    except ModuleNotFoundError as error:
        raise UserError(
            f'extractor {name!r} needs the package {error.name}: pip install -e ".[{entry.extra}]"'
        ) from error
