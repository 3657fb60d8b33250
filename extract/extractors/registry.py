"""The extractors' common interface, the table of all extractors, and loading them by name."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from extract.media import CLIP_SECONDS
from slf_common.errors import UserError
from tfrecords.schema import AUDIO_CONSTITUENTS, EMBEDDING, LANGUAGE_LOGPROBS, Constituent

Windows = Sequence[tuple[float, float]]  # (length, hop) in seconds


class Extractor(Protocol):
    """Computes one constituent. The constructor loads the weights."""

    @property
    def constituent(self) -> Constituent:
        """Name, shape and provenance of the features."""
        ...

    def __call__(self, waves: np.ndarray) -> np.ndarray:
        """Maps clips of 24 s at 16 kHz, float32 [clips, 384000], to features, float32 [clips, rows, width].

        The result for a clip depends on that clip alone. Values that cannot be computed are NaN.
        """
        ...


@dataclasses.dataclass(frozen=True)
class RegistryEntry:
    """Where to find an extractor: `module` defines `load(settings) -> Extractor`."""

    module: str
    extra: str  # of setup.py; installs the framework
    planned: Constituent  # with the paper's model and windows
    published: str = ""  # hub id of the published weights, those of configs/base.py


_PAPER = {part.name: part for part in AUDIO_CONSTITUENTS}
_MODULES = "extract.extractors"
EXTRACTORS = {
    "ecapa": RegistryEntry(f"{_MODULES}.ecapa", "extract", _PAPER["ecapa"], "speechbrain/spkrec-ecapa-voxceleb"),
    "pyannote": RegistryEntry(f"{_MODULES}.pyannote", "extract", _PAPER["pyannote"], "pyannote/embedding"),
    "titanet": RegistryEntry(
        f"{_MODULES}.nemo", "extract", _PAPER["titanet"], "nvidia/speakerverification_en_titanet_large"
    ),
    "speakernet": RegistryEntry(
        f"{_MODULES}.nemo", "extract", _PAPER["speakernet"], "nvidia/speakerverification_en_speakernet"
    ),
    "ge2e": RegistryEntry(f"{_MODULES}.ge2e", "extract", Constituent("ge2e", 1, 256, EMBEDDING, windows="whole clip")),
    "pyaudioanalysis": RegistryEntry(f"{_MODULES}.pyaudioanalysis", "demo", _PAPER["pyaudioanalysis"]),
    "mel": RegistryEntry(f"{_MODULES}.mel", "demo", _PAPER["mel"]),
    "language": RegistryEntry(
        f"{_MODULES}.language", "extract", LANGUAGE_LOGPROBS, "speechbrain/lang-id-commonlanguage_ecapa"
    ),
}


def plan_constituents(settings: Mapping) -> list[Constituent]:
    """Returns the constituents that `config.extract` selects, without loading anything.

    Widths are those of the paper's models; other weights may have other widths. Raises `UserError` for windows
    longer than a clip.
    """
    return [_plan(name, settings.get(name, {})) for name in settings["extractors"]]


def _plan(name: str, settings: Mapping) -> Constituent:
    planned = EXTRACTORS[name].planned
    if "windows" not in settings:
        return planned
    rows = sum(count_windows(name, length, hop) for length, hop in settings["windows"])
    return dataclasses.replace(planned, rows=rows, windows=format_windows(settings["windows"]))


def count_windows(name: str, length: float, hop: float) -> int:
    """Returns the number of windows of `length` seconds, one every `hop` seconds, that fit into a clip.

    Raises `UserError` if there are none; `name` is the extractor's.
    """
    if length > CLIP_SECONDS:
        raise UserError(
            f"config.extract.{name}.windows: {length:g} s every {hop:g} s does not fit clips of {CLIP_SECONDS} s"
        )
    return int((CLIP_SECONDS - length) / hop + 1e-9) + 1


def format_windows(windows: Windows) -> str:
    """Formats windows as `12/4, 6/2 s`."""
    if tuple(map(tuple, windows)) == ((CLIP_SECONDS, CLIP_SECONDS),):
        return "whole clip"
    return ", ".join(f"{length:g}/{hop:g}" for length, hop in windows) + " s"


def load(settings: Mapping) -> list[Extractor]:
    """Loads the extractors of `config.extract` with their weights, in the order of the config.

    `settings` must have passed `extract.settings.check_config`. Raises `UserError` for windows longer than a clip,
    a package that is not installed, or missing weights.
    """
    plan_constituents(settings)
    return [_load(name, settings.get(name, {})) for name in settings["extractors"]]


def _load(name: str, settings: Mapping) -> Extractor:
    entry = EXTRACTORS[name]
    try:
        return importlib.import_module(entry.module).load({"name": name, **settings})
    except ModuleNotFoundError as error:
        raise UserError(
            f'extractor {name!r} needs the package {error.name}: pip install -e ".[{entry.extra}]"'
        ) from error
