"""The plan of a dataset, and the work on one of its chunks.

The sorted clips are divided by split and cut into chunks. One chunk = one shard = one unit of work: whoever does
it, in whatever order, the shard is the same, and a shard that exists is done.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np

from extract.attributes import Attributes, People
from extract.clips import Clip
from extract.faces import Face, find_face
from extract.media import MediaError, decode_audio, face_frames, fit_audio
from extract.models import Models
from slf_common.errors import UserError
from slf_common.files import write_atomically
from tfrecords.schema import LANGUAGE_LOGPROBS, Schema
from tfrecords.writer import SPLITS, shard_name, summary_path, write_shard

BATCH = 16  # clips that go through the models together; their sound takes 1.5 MB each
LARGEST = float(np.finfo(np.float16).max)

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Chunk:
    """The clips of one shard, and what is known of each."""

    split: str
    shard: str
    clips: tuple[Clip, ...]
    attributes: tuple[Attributes, ...] = ()


@dataclasses.dataclass(frozen=True)
class Job:
    """What is the same for all chunks of a run. `settings`: `config.extract` as JSON."""

    out: Path
    schema: Schema
    settings: str


@dataclasses.dataclass(frozen=True)
class Done:
    """How a chunk went: clips that failed, and seconds by stage."""

    failed: int
    seconds: dict[str, float]


def make_chunks(clips: Sequence[Clip], people: People, clips_per_shard: int) -> list[Chunk]:
    """Cuts the clips of each split into chunks, in the order of `SPLITS` and, within one, of `clips`."""
    clips = [people.identify(clip) for clip in clips]
    chunks = []
    for split in SPLITS:
        members = [clip for clip in clips if people.split(clip.speaker_id) == split]
        parts = [members[i : i + clips_per_shard] for i in range(0, len(members), clips_per_shard)]
        chunks += [Chunk(split, shard_name(split, i, len(parts)), tuple(part)) for i, part in enumerate(parts)]
    return chunks


def with_attributes(chunks: Sequence[Chunk], people: People) -> list[Chunk]:
    """The chunks with what is known of their clips."""
    return [
        dataclasses.replace(chunk, attributes=tuple(people.attributes(clip) for clip in chunk.clips))
        for chunk in chunks
    ]


def count_shards(chunks: Sequence[Chunk]) -> dict[str, int]:
    """Shards of each split."""
    return {split: sum(chunk.split == split for chunk in chunks) for split in SPLITS}


def plan_path(out: Path) -> Path:
    """Where the plan of a dataset lies."""
    return out / "chunks" / "plan.json"


def read_plan(out: Path) -> dict | None:
    """The plan of the dataset in a folder, None where there is no dataset yet.

    Raises `UserError` if it is damaged, or missing though there are shards.
    """
    path = plan_path(out)
    try:
        plan = json.loads(path.read_text())
    except FileNotFoundError:
        if any(out.glob("*.tfrecord-*")):
            raise UserError(f"{path}: missing, though there are shards; give another --out, or remove {out}") from None
        return None
    except ValueError:
        plan = None
    if not isinstance(plan, dict):
        raise UserError(f"{path}: not valid JSON; give another --out, or remove {out} to start anew")
    return plan


def compare_plans(out: Path, found: Mapping, plan: Mapping) -> None:
    """Raises `UserError` where the dataset in a folder was begun with something other than `plan` says."""
    for key, value in json.loads(json.dumps(plan)).items():
        if value == found.get(key):
            continue
        before = found.get(key, {})
        parts = [name for name in value if value[name] != before.get(name)] if isinstance(value, dict) else []
        part = f" ({parts[0]})" if parts else ""
        raise UserError(f"{out} holds a dataset made with other {key}{part}; give another --out, or remove that folder")


def outline(settings: Mapping, chunks: Sequence[Chunk]) -> dict:
    """The part of the plan that is known before anything is loaded."""
    return {
        "extractors": list(settings["extractors"]),
        "detector": settings["detector"],
        "frames": settings["frames"],
        "estimate": list(settings["deepface"]["estimate"]),
        "clips_per_shard": settings["clips_per_shard"],
        "videos": _digest(sorted(clip.clip_id for chunk in chunks for clip in chunk.clips)),
    }


def details(schema: Schema, provenance: Mapping, chunks: Sequence[Chunk]) -> dict:
    """The rest of the plan: models with versions and digests of weights, and what is known of each clip."""
    known = [
        [clip.clip_id, clip.speaker_id, chunk.split, attributes]
        for chunk in chunks
        for clip, attributes in zip(chunk.clips, chunk.attributes, strict=True)
    ]
    data = schema.to_json()
    return {
        "constituents": {part["name"]: part for part in data["constituents"]},
        "labels": data["labels"],
        "provenance": dict(provenance),
        "attributes": _digest(known),
    }


def planned(found: Mapping) -> tuple[Schema, dict]:
    """The schema and provenance of a plan on disk."""
    parts = list(found["constituents"].values())
    return Schema.from_json({"constituents": parts, "labels": found["labels"]}), found["provenance"]


def write_plan(out: Path, plan: Mapping) -> None:
    """Writes the plan of a dataset."""
    write_atomically(plan_path(out), json.dumps(plan, indent=1).encode())


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def is_done(out: Path, chunk: Chunk) -> bool:
    """Whether the chunk's shard and its summary exist; each is whole or absent."""
    return (out / chunk.shard).exists() and summary_path(out, chunk.shard).exists()


def read_summary(out: Path, chunk: Chunk) -> dict:
    """The summary of a chunk that is done: `{"clips": [id], "failures": [{"clip", "reason"}], "losses": ...}`.

    Raises `UserError` if it is damaged.
    """
    path = summary_path(out, chunk.shard)
    try:
        return json.loads(path.read_text())
    except ValueError:
        raise UserError(f"{path}: not valid JSON; remove it, and extract.run writes its shard again") from None


def process_chunk(chunk: Chunk, job: Job, models: Models) -> Done:
    """Decodes, crops and extracts the clips of a chunk and writes its shard.

    A clip whose media are damaged goes to the shard's failures, or to its losses where enough of it decodes. Any other
    error is raised and no shard written: the next run tries again.
    """
    seconds: Counter[str] = Counter()
    failures: list[dict] = []
    losses: list[dict] = []
    with _timed(seconds, "total"):
        records = _records(chunk, models, failures, losses, seconds)
        write_shard(job.out / chunk.shard, job.schema, records, failures, losses)
    return Done(len(failures), dict(seconds))


def _records(
    chunk: Chunk, models: Models, failures: list[dict], losses: list[dict], seconds: Counter
) -> Iterator[dict]:
    """Records for `write_shard`, a batch at a time; `failures` and `losses` fill as they are drawn."""
    for batch in _ahead(_decoded(chunk, models, failures, losses, seconds), seconds):
        sound = np.stack([wave for _, wave, _ in batch])
        constituents = {}
        for part in models.extractors:
            with _timed(seconds, part.constituent.name):
                constituents[part.constituent.name] = storable(part(sound))
        estimates = _estimate(models, batch, seconds)
        for i, (record, _, _) in enumerate(batch):
            values = {name: value[i] for name, value in constituents.items()}
            # What is known goes before what is estimated.
            yield {**_language(values), **estimates[i], **record, **values}


Decoded = tuple[dict, np.ndarray, Face]  # a record without constituents, 24 s of sound, the face


def _decoded(
    chunk: Chunk, models: Models, failures: list[dict], losses: list[dict], seconds: Counter
) -> Iterator[list[Decoded]]:
    """The clips that can be decoded and have a face, in batches."""
    batch: list[Decoded] = []
    for clip, known in zip(chunk.clips, chunk.attributes, strict=True):
        lost: list[str] = []
        try:
            with _timed(seconds, "sound"):
                wave = fit_audio(decode_audio(clip.path, lost=lost))
            with _timed(seconds, "face"):
                face = find_face(face_frames(clip, models.frames, lost), models.detector)
        except MediaError as error:
            failures.append({"clip": clip.clip_id, "reason": str(error)})
            continue
        except MemoryError:
            raise UserError(
                f"{clip.path}: not enough memory to decode it; the same command goes on with the finished shards, "
                "with fewer --config.extract.workers if need be"
            ) from None
        if lost:
            reason = "; ".join(f"{count} x {what}" for what, count in Counter(lost).items())
            losses.append({"clip": clip.clip_id, "reason": reason})
        record = {"clip_id": clip.clip_id, "speaker_id": clip.speaker_id, "face": face.picture, **known}
        batch.append((record, wave, face))
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _ahead(items: Iterator[T], seconds: Counter) -> Iterator[T]:
    """The same items, each made in a thread while the one before is in use."""
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, items, None)
        while True:
            with _timed(seconds, "waiting"):
                item = following.result()
            if item is None:
                return
            following = thread.submit(next, items, None)
            yield item


def _estimate(models: Models, batch: Sequence[Decoded], seconds: Counter) -> list[Attributes]:
    """Attributes by DeepFace, of the clips of which not all that it estimates is known."""
    estimates: list[Attributes] = [{} for _ in batch]
    if not models.estimator:
        return estimates
    unknown = [i for i, (record, _, _) in enumerate(batch) if not set(models.estimator.names) <= set(record)]
    with _timed(seconds, "attributes"):
        found = models.estimator([batch[i][2].close for i in unknown])
    for i, estimate in zip(unknown, found, strict=True):
        estimates[i] = estimate
    return estimates


def _language(values: Mapping[str, np.ndarray]) -> Attributes:
    """The likeliest language, where there are scores."""
    scores = values.get(LANGUAGE_LOGPROBS.name)
    known = scores is not None and np.isfinite(scores).all()
    return {"language": int(scores.argmax())} if known else {}


def storable(values: np.ndarray) -> np.ndarray:
    """Constituents [clips, rows, width] with rows that float16 cannot hold, or that are not finite, all NaN."""
    holds = (np.abs(values) <= LARGEST).all(-1, keepdims=True)
    return np.where(holds, values, np.nan)


@contextmanager
def _timed(seconds: Counter, stage: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] += time.perf_counter() - start
