"""Features of single recordings, computed as those of the dataset that a system was trained on.

No face, split or attributes are needed. The models are loaded once, for any number of recordings.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from extract.clips import SOUND, VIDEO, format_suffixes
from extract.extractors import registry
from extract.extractors.values import record_values
from extract.media import CLIP_SAMPLES, CLIP_SECONDS, SAMPLE_RATE, MediaError, decode_audio, fit_audio
from slf_common.errors import UserError
from slf_common.files import local_path
from tfrecords.schema import Constituent, Schema

MIN_SECONDS = 1.0  # a shorter sound says too little about a voice


@dataclasses.dataclass(frozen=True)
class Recording:
    """The features of a recording.

    Attributes:
      name: its file name.
      fields: of a record: constituents float16 [rows, width], and the index of the language if it was classified.
      seconds: length of the sound that was used, at most 24 s.
      notes: what a user should know, for example that the recording is longer.
    """

    name: str
    fields: Mapping[str, Any]
    seconds: float
    notes: tuple[str, ...]


class RecordingExtractor:
    """Maps a sound or video file to the features that a trained system needs.

    Args:
      inputs: the constituents that the system uses; those without an extractor (age, gender, ...) are ignored.
      schema, provenance: of the dataset that the system was trained on.
      weights: by extractor, weights to load in place of those in `provenance`, which may be paths on another machine.
      allow_other_weights: use weights whose digest is not the one in `schema`.

    Attributes:
      notes: weights and package versions that differ from those of the dataset.

    Raises `UserError` if the system uses no constituent of a voice, or a package or weights are missing or differ.
    """

    def __init__(
        self, inputs: Sequence[str], schema: Schema, provenance: Mapping[str, Any], *,
        weights: Mapping[str, str] | None = None, allow_other_weights: bool = False,
    ) -> None:  # fmt: skip
        settings = _settings(inputs, provenance, weights or {})
        self._extractors = registry.load(settings)
        trained = {part.name: part for part in schema.constituents}
        loaded = [extractor.constituent for extractor in self._extractors]
        self.notes = [note for part in loaded for note in _compare(trained[part.name], part, allow_other_weights)]

    def __call__(self, path: Path) -> Recording:
        """Computes the features of the first 24 s of a file; a shorter sound is repeated, as in training.

        Raises `UserError` if the file cannot be read, or holds no voice.
        """
        lost: list[str] = []
        if not path.is_file():
            raise UserError(f"{path}: {'not a file' if path.exists() else 'no such file'}; give a sound or a video")
        try:
            wave = decode_audio(path, lost=lost)
        except MediaError as error:
            raise UserError(f"{path}: {error}") from None
        seconds = len(wave) / SAMPLE_RATE
        if seconds < MIN_SECONDS:
            raise UserError(f"{path}: {seconds:.2g} s of sound; give at least {MIN_SECONDS:g} s of a voice")
        notes = [f"{count} x {what}" for what, count in Counter(lost).items()]
        if len(wave) == CLIP_SAMPLES:
            notes.append(f"only the first {CLIP_SECONDS} s are used")
        waves = fit_audio(wave)[None]
        fields = record_values({e.constituent.name: e(waves)[0] for e in self._extractors})
        return Recording(path.name, fields, seconds, tuple(notes))


def find_recordings(path: Path) -> list[Path]:
    """The sounds and videos in a folder and its subfolders, sorted; a file is returned as it is. Raises `UserError`."""
    if not path.is_dir():
        return [path]
    found = sorted(each for each in path.rglob("*") if each.suffix.lower() in (*SOUND, *VIDEO) and each.is_file())
    if not found:
        raise UserError(f"{path}: no recordings here; they end in {format_suffixes((*VIDEO, *SOUND))}")
    return found


def _settings(inputs: Sequence[str], provenance: Mapping[str, Any], weights: Mapping[str, str]) -> dict[str, Any]:
    """The part of `config.extract` that loads the extractors."""
    stored = provenance.get("extractors", {})
    names = [name for name in inputs if name in stored]
    if unknown := [name for name in names if name not in registry.EXTRACTORS]:
        raise UserError(f"{unknown[0]}: this version has no such extractor; it has {', '.join(registry.EXTRACTORS)}")
    if not names:
        raise UserError(f"this system was trained without a voice; its inputs are: {', '.join(inputs) or 'none'}")
    for name in weights:
        if "weights" not in stored.get(name, {}):
            known = ", ".join(name for name in names if "weights" in stored[name]) or "none"
            raise UserError(f"weights of {name!r}: the extractors of this system that have weights are: {known}")
    for name in names:
        if name not in weights:
            _check_source(name, stored[name].get("weights", ""))
    chosen = {name: {**stored[name], **({"weights": weights[name]} if name in weights else {})} for name in names}
    return {"extractors": names, **chosen}


def _check_source(name: str, weights: str) -> None:
    """Raises `UserError` for weights of other authors: loading can run their code, before any digest is compared."""
    if weights not in ("", registry.EXTRACTORS[name].published) and not local_path(weights).exists():
        raise UserError(
            f"{name}: this system was trained with the weights {weights!r}, which are neither the published "
            f"ones nor on this machine; if you trust them, give --weights {name}={weights}, or another path"
        )


def _compare(trained: Constituent, loaded: Constituent, allow_other_weights: bool) -> Iterator[str]:
    """Yields a note for each harmless difference. Raises `UserError` for one that makes the features unusable."""
    for field in ("rows", "width", "kind"):
        if getattr(trained, field) != getattr(loaded, field):
            raise UserError(
                f"{loaded.name}: {field} {getattr(loaded, field)}, but this system was trained with "
                f"{getattr(trained, field)}; use the same weights and version ({trained.extractor})"
            )
    if trained.weights != loaded.weights:
        before, now = trained.weights or "none", loaded.weights or "none"
        if not allow_other_weights:
            raise UserError(
                f"{loaded.name}: weights {now}, but this system was trained with {before}; give the same weights "
                f"(--weights {loaded.name}=PATH), or accept others with --allow-other-weights"
            )
        yield f"{loaded.name}: weights {now}, trained with {before}"
    if trained.extractor != loaded.extractor:
        yield f"{loaded.name}: {loaded.extractor}, trained with {trained.extractor}"
