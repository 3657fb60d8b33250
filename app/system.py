"""A trained system that takes recordings and pictures: `slf_jax.load`."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from app import faces
from slf_common.errors import UserError
from slf_common.files import local_path
from slf_jax import distributed
from slf_jax.cascade.settings import SampleSettings, sample_settings
from slf_jax.cascade.sizes import STAGES
from slf_jax.inference import metadata
from slf_jax.inference.people import read_thumbnail
from slf_jax.inference.sampler import Sampler
from slf_jax.inference.scales import Scale
from slf_jax.inference.trained import PRETRAINED, Trained
from slf_jax.inference.trained import load as load_trained
from tfrecords.schema import FACE_SIZE, UNKNOWN, label_index

if TYPE_CHECKING:
    from extract.recordings import Recording, RecordingExtractor

LABELS = ("gender", "ethnicity", "language")
MAX_AGE = 120.0  # years
PERSON = 0  # the noise depends on the seed and the sample only, so that faces of different inputs can be compared


@dataclasses.dataclass(frozen=True)
class Person:
    """The inputs for a face.

    Attributes:
      record: fields of a record, as `Sampler` takes them, without a batch axis; what is unknown is NaN or -1.
      has_thumbnail: False: `record["face"]` is empty.
      notes: the inputs in words, for the metadata of images.
    """

    record: Mapping[str, np.ndarray]
    has_thumbnail: bool
    notes: Mapping[str, str]


class FaceSystem:
    """A trained system with the extractors that it was trained with. Use `slf_jax.load` to make one.

    Threads may share it: extraction and sampling take turns.

    Args:
      weights: by extractor, weights to load in place of those in the system's provenance.
      allow_other_weights: accept weights whose digest is not the one of training.
    """

    def __init__(
        self, trained: Trained, *, weights: Mapping[str, str] | None = None, allow_other_weights: bool = False
    ) -> None:
        self.trained = trained
        self.inputs = trained.system.inputs
        self._weights, self._allow_other_weights = weights, allow_other_weights
        self._sampler: Sampler | None = None
        self._lock = threading.RLock()

    @property
    def voice_inputs(self) -> tuple[str, ...]:
        """The constituents that are computed from a voice."""
        return tuple(name for name in self.inputs if name in self.trained.meta.provenance.get("extractors", {}))

    @functools.cached_property
    def _extractor(self) -> RecordingExtractor:
        try:
            from extract.recordings import RecordingExtractor
        except ModuleNotFoundError as error:
            raise UserError(f'a voice needs the package {error.name}: pip install -e ".[demo]"') from error
        meta = self.trained.meta
        return RecordingExtractor(
            self.inputs, meta.schema, meta.provenance, weights=self._weights,
            allow_other_weights=self._allow_other_weights,
        )  # fmt: skip

    def listen(self, voice: str | Path) -> Recording:
        """Computes the features of a sound or video file (its first 24 s). The models are loaded by the first call.

        Raises `UserError` if the file holds no voice, the system was trained without one, or a package or weights are
        missing or not those of training.
        """
        with self._lock:
            return self._extractor(local_path(voice))

    def read_thumbnail(self, picture: str | Path, *, face: bool = False) -> np.ndarray:
        """Reads a picture as a face, uint8 [128, 128, 3], whose 8x8 averages are the thumbnail.

        `face`: crop to the largest face, as in the training data, instead of the centre square; needs the extra
        `extract`. Raises `UserError` if the picture cannot be read, or has no face.
        """
        path = local_path(picture)
        if not face:
            return read_thumbnail(path)
        with self._lock:
            return faces.crop(path, self.trained.meta.provenance)

    def describe_person(
        self, *, voice: str | Path | Recording | None = None, thumbnail: str | Path | np.ndarray | None = None,
        face: bool = False, age: float | None = None, gender: str = "", ethnicity: str = "", language: str = "",
    ) -> Person:  # fmt: skip
        """Collects any subset of the inputs, see `draw`. Raises `UserError` for inputs that cannot be used."""
        given = {"age": age, "gender": gender, "ethnicity": ethnicity, "language": language}
        if voice is None and thumbnail is None and all(value in (None, "") for value in given.values()):
            raise UserError("nothing to draw from: give a voice, a thumbnail, an age, a gender or an ethnicity")
        record, notes = _unknown(self.trained), {"voice": "none", "thumbnail": "none"}
        if voice is not None:
            recording = self.listen(voice) if isinstance(voice, (str, Path)) else voice
            record |= {name: value for name, value in recording.fields.items() if name in record}
            notes["voice"] = f"{recording.name}, {recording.seconds:.1f} s"
            differences = "; ".join(self._extractor.notes)
            notes |= {"weights": differences} if differences else {}
        record |= self._attributes(given)
        notes |= {name: str(value) for name, value in given.items() if value not in (None, "")}
        if isinstance(thumbnail, (str, Path)):
            record["face"], notes["thumbnail"] = self.read_thumbnail(thumbnail, face=face), Path(thumbnail).name
        elif thumbnail is not None:
            record["face"], notes["thumbnail"] = thumbnail, "given as an image"
        return Person(record, thumbnail is not None, notes)

    def _attributes(self, given: Mapping[str, Any]) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for name, value in given.items():
            if value in (None, ""):
                continue
            if name not in self.inputs:
                raise UserError(f"this system does not use {name}; its inputs are: {', '.join(self.inputs)}")
            if name == "age":
                if not 0 <= value <= MAX_AGE:
                    raise UserError(f"age {value:g}: must be from 0 to {MAX_AGE:g} years")
                found[name] = np.array(value, np.float32)
                continue
            try:
                found[name] = np.array(label_index(self.trained.meta.schema.labels, name, value), np.int32)
            except ValueError as error:
                raise UserError(str(error)) from None
        return found

    def matrix(self, person: Person) -> tuple[np.ndarray, np.ndarray]:
        """The feature matrix [256, 768] of a person, and the mask [256] of its known rows."""
        matrix, mask = self.trained.system.features(_batch(person))
        return np.asarray(matrix[0]), np.asarray(mask[0])

    def sample(
        self, person: Person, scales: Sequence[Scale], samples: int = 1, seed: int = 0,
        settings: SampleSettings | None = None, progress: str = "",
    ) -> np.ndarray:  # fmt: skip
        """Samples faces of a person, uint8 [scales, samples, 128, 128, 3].

        Compiled once for each number of scales, and again if `settings` (default: the run's own) change.
        """
        with self._lock:
            sampler = self._sampler_for(settings)
            images = sampler(
                _batch(person), np.array([PERSON]), scales, seed, samples=samples, use_thumbnail=person.has_thumbnail,
                progress=progress,
            )  # fmt: skip
        return images[:, 0]

    def notes(
        self, person: Person, scale: Scale, seed: int, settings: SampleSettings | None = None
    ) -> dict[str, object]:
        """The metadata of an image of a person: that it is synthetic, how it was made and from which inputs."""
        settings = settings or sample_settings(self.trained.meta.config)
        return {**metadata.describe(self.trained, settings, STAGES, scale, seed), **person.notes}

    def draw(
        self, *, voice: str | Path | Recording | None = None, thumbnail: str | Path | np.ndarray | None = None,
        face: bool = False, age: float | None = None, gender: str = "", ethnicity: str = "", language: str = "",
        scales: Sequence[float | Scale] = (1.0,), samples: int = 1, seed: int = 0,
        settings: SampleSettings | None = None,
    ) -> np.ndarray:  # fmt: skip
        """Draws faces from any subset of a voice, a thumbnail and attributes.

        Args:
          voice: a sound or video file, of which the first 24 s are used, or what `listen` returned.
          thumbnail: a picture file, of which the 8x8 average is used, or an image uint8 [128, 128, 3].
          face: crop the picture to its largest face.
          age: in years.
          gender, ethnicity, language: a class name of the system, see `trained.meta.schema.labels`.
          scales: guidance scales; a pair is of base stage and upsampler. 0: the thumbnail alone; 1: no guidance.
          samples: number of faces at each scale.
          seed: of the noise; the same inputs and seed give the same faces.
          settings: of the sampler; default: the run's `config.sample`.

        Returns: images uint8 [scales, samples, 128, 128, 3]. They are synthetic: not of the person who speaks.

        Raises `UserError` for inputs that cannot be used.
        """
        person = self.describe_person(
            voice=voice, thumbnail=thumbnail, face=face, age=age, gender=gender, ethnicity=ethnicity, language=language
        )
        pairs = [(float(s), float(s)) if isinstance(s, (int, float)) else (float(s[0]), float(s[1])) for s in scales]
        return self.sample(person, pairs, samples, seed, settings)

    def _sampler_for(self, settings: SampleSettings | None) -> Sampler:
        settings = settings or sample_settings(self.trained.meta.config)
        if self._sampler is None or self._sampler.settings != settings:
            self._sampler = Sampler(self.trained, settings=settings)
        return self._sampler


def load(
    source: str | Path | None = None, *, overrides: Mapping[str, str] | None = None,
    weights: Mapping[str, str] | None = None, allow_other_weights: bool = False,
) -> FaceSystem:  # fmt: skip
    """Loads a trained system to draw with.

    Args:
      source: a run directory, an exported folder, or `hf://owner/name`; default: the demo's system, which
        draws made-up people.
      overrides: changes of the sampler's settings, as in `{"sample.steps": "32"}`.
      weights: by extractor, a path or hub id to load in place of the weights that training used.
      allow_other_weights: accept weights whose digest differs from those of training.

    Raises `UserError` if there is no trained system, or it is damaged.
    """
    trained = load_trained(source or PRETRAINED, overrides=overrides)
    distributed.use_compilation_cache(trained.meta.config.compilation_cache)
    return FaceSystem(trained, weights=weights, allow_other_weights=allow_other_weights)


def _unknown(trained: Trained) -> dict[str, np.ndarray]:
    """A record of which nothing is known. It has all inputs, so that one compiled program works for any of them."""
    record: dict[str, np.ndarray] = {"face": np.zeros((FACE_SIZE, FACE_SIZE, 3), np.uint8)}
    for name in trained.system.inputs:
        block = trained.system.layout[name]
        if name == "age":
            record[name] = np.array(np.nan, np.float32)
        elif name in LABELS:
            record[name] = np.array(UNKNOWN, np.int32)
        else:
            record[name] = np.full((block.rows, block.width), np.nan, np.float16)
    return record


def _batch(person: Person) -> dict[str, np.ndarray]:
    return {name: np.asarray(value)[None] for name, value in person.record.items()}
