"""The plan of a dataset, and the work on one of its chunks.

The sorted clips are divided by split and cut into chunks. One chunk = one shard = one unit of work: whoever does
it, in whatever order, the shard is the same, and a shard that exists is done.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from extract.attributes import Attributes, People
from extract.extractors import Extractor
from extract.faces import crop_face
from extract.media import Clip, MediaError, decode_audio, decode_face_frame, fit_audio
from tfrecords.cli import UserError
from tfrecords.schema import Schema
from tfrecords.writer import SPLITS, shard_name, summary_path, write_atomically, write_shard

BATCH = 16  # clips whose sound is in memory at a time, 1.5 MB each
LARGEST = float(np.finfo(np.float16).max)


@dataclasses.dataclass(frozen=True)
class Chunk:
    """The clips of one shard, and what is known of each."""

    split: str
    shard: str
    clips: tuple[Clip, ...]
    attributes: tuple[Attributes, ...]


@dataclasses.dataclass(frozen=True)
class Job:
    """What is the same for all chunks of a run."""

    out: Path
    schema: Schema
    extractors: tuple[str, ...]
    detector: str


def make_chunks(clips: Sequence[Clip], people: People, clips_per_shard: int) -> list[Chunk]:
    """Cuts the clips of each split into chunks, in the order of `SPLITS` and, within one, of `clips`."""
    clips = [people.identify(clip) for clip in clips]
    chunks = []
    for split in SPLITS:
        members = [clip for clip in clips if people.split(clip.speaker_id) == split]
        parts = [members[i : i + clips_per_shard] for i in range(0, len(members), clips_per_shard)]
        for i, part in enumerate(parts):
            attributes = tuple(people.attributes(clip) for clip in part)
            chunks.append(Chunk(split, shard_name(split, i, len(parts)), tuple(part), attributes))
    return chunks


def count_shards(chunks: Sequence[Chunk]) -> dict[str, int]:
    """Shards per split, as `tfrecords.writer.finalise` takes them."""
    return {split: sum(chunk.split == split for chunk in chunks) for split in SPLITS}


def claim(job: Job, chunks: Sequence[Chunk], clips_per_shard: int) -> None:
    """Writes the plan's fingerprint to `chunks/plan.json`.

    Raises `UserError` where a dataset made to another plan lies in the folder already.
    """
    plan = _fingerprint(job, chunks, clips_per_shard)
    path = job.out / "chunks" / "plan.json"
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        write_atomically(path, json.dumps(plan, indent=1).encode())
        return
    except json.JSONDecodeError:
        raise UserError(f"{path}: not valid JSON; give another --out, or remove {job.out} to start anew") from None
    other = [key for key in plan if plan[key] != found.get(key)]
    if other:
        raise UserError(
            f"{job.out} holds a dataset made with other {other[0]}; give another --out, or remove that folder"
        )


def _fingerprint(job: Job, chunks: Sequence[Chunk], clips_per_shard: int) -> dict:
    clips = [
        [clip.clip_id, clip.speaker_id, chunk.split, attributes]
        for chunk in chunks
        for clip, attributes in zip(chunk.clips, chunk.attributes, strict=True)
    ]
    return {
        "extractors": job.schema.to_json()["constituents"],
        "detector": job.detector,
        "clips_per_shard": clips_per_shard,
        "videos": _digest(sorted(clip[0] for clip in clips)),
        "attributes": _digest(clips),
    }


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def is_done(job: Job, chunk: Chunk) -> bool:
    """Whether the chunk's shard and its summary exist; each is whole or absent."""
    return (job.out / chunk.shard).exists() and summary_path(job.out, chunk.shard).exists()


def read_summary(job: Job, chunk: Chunk) -> dict:
    """The summary of a chunk that is done: `{"clips": [id], "failures": [{"clip", "reason"}], ...}`."""
    return json.loads(summary_path(job.out, chunk.shard).read_text())


def process_chunk(chunk: Chunk, job: Job, extractors: Sequence[Extractor]) -> int:
    """Decodes, crops and extracts the clips of a chunk and writes its shard; returns how many clips failed.

    A clip whose media cannot be used goes to the shard's failures; any other error is raised and no shard written.
    """
    failures: list[dict] = []
    records = _records(chunk, job, extractors, failures)
    write_shard(job.out / chunk.shard, job.schema, records, failures)
    return len(failures)


def _records(chunk: Chunk, job: Job, extractors: Sequence[Extractor], failures: list[dict]) -> Iterator[dict]:
    """Records for `write_shard`, a batch at a time; `failures` fills as they are drawn."""
    for start in range(0, len(chunk.clips), BATCH):
        batch = slice(start, start + BATCH)
        records, waves = _decode(chunk.clips[batch], chunk.attributes[batch], job.detector, failures)
        if not records:
            continue
        sound = np.stack(waves)
        constituents = {part.constituent.name: storable(part(sound)) for part in extractors}
        for i, record in enumerate(records):
            yield record | {name: values[i] for name, values in constituents.items()}


def _decode(
    clips: Sequence[Clip], attributes: Sequence[Attributes], detector: str, failures: list[dict]
) -> tuple[list[dict], list[np.ndarray]]:
    """Records without constituents, and the sound of each, of the clips that can be decoded."""
    records, waves = [], []
    for clip, known in zip(clips, attributes, strict=True):
        try:
            wave = fit_audio(decode_audio(clip.path))
            face = crop_face(decode_face_frame(clip), detector)
        except MediaError as error:
            failures.append({"clip": clip.clip_id, "reason": str(error)})
            continue
        records.append({"clip_id": clip.clip_id, "speaker_id": clip.speaker_id, "face": face, **known})
        waves.append(wave)
    return records, waves


def storable(values: np.ndarray) -> np.ndarray:
    """Constituents [clips, rows, width] with rows that float16 cannot hold, or that are not finite, all NaN."""
    holds = (np.abs(values) <= LARGEST).all(-1, keepdims=True)
    return np.where(holds, values, np.nan)
