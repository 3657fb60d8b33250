"""Writing a dataset: first the shards, each atomically, then the metadata for TFDS and `tfrecords.reader`.

Layout of a dataset folder:
    slf-train.tfrecord-00000-of-00008   a shard of clips
    chunks/<shard>.json                 its summary: clips, speakers, failures, counts, and sums for the statistics
    slf-train.index.npz                 where each record lies, and its ids
    dataset_info.json, features.json    metadata of TFDS
    metadata.json                       schema, provenance, and statistics of the training split (null without one)
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from slf_common.files import write_atomically
from tfrecords.codec import FOOTER, HEADER, encode_clip, frame
from tfrecords.index import Index, index_name, spans_of
from tfrecords.schema import FACE_SIZE, UNKNOWN, Constituent, Schema

NAME = "slf"
SPLITS = ("train", "validation", "test")
FORMAT_VERSION = "1.0.0"


def shard_name(split: str, shard: int, shards: int) -> str:
    """A file name such as `slf-train.tfrecord-00000-of-00008`, the pattern of TFDS."""
    return f"{NAME}-{split}.tfrecord-{shard:05d}-of-{shards:05d}"


def summary_path(directory: Path, shard: str) -> Path:
    """The path of a shard's summary. It is written before the shard, so every shard that exists has one."""
    return directory / "chunks" / f"{shard}.json"


def write_shard(
    path: Path, schema: Schema, clips: Iterable[dict], failures: Sequence[dict] = (), losses: Sequence[dict] = ()
) -> int:
    """Writes the clips of one shard and its summary; returns the number of clips.

    `failures` are clips that were not used, `losses` clips that were used without their damaged parts; each is
    `{"clip": id, "reason": text}`. The summary also lists each clip's "detector", the one that found its face, if the
    clip has one. The shard is renamed into place last, so a shard that exists is complete.
    """
    sums = {part.name: _empty_sums(part) for part in schema.constituents}
    people: dict[str, Counter[int]] = {name: Counter() for name in ("age", *schema.labels)}
    ids, frames, speakers, detectors = [], [], [], []
    for clip in clips:
        frames.append(frame(encode_clip(clip, schema)))
        ids.append(clip["clip_id"])
        speakers.append(clip["speaker_id"])
        detectors.append(clip.get("detector", ""))
        _count(people, clip)
        for part in schema.constituents:
            if part.name in clip:
                _add(sums[part.name], clip[part.name])
    summary = {
        "clips": ids,
        "speaker_of_clip": speakers,
        "lengths": [len(data) - HEADER - FOOTER for data in frames],
        "detectors": detectors,
        "bytes": sum(map(len, frames)),
        "failures": list(failures),
        "losses": list(losses),
        "speakers": sorted(set(speakers)),
        "people": {name: dict(sorted(counts.items())) for name, counts in people.items()},
        "sums": {name: {key: value.tolist() for key, value in parts.items()} for name, parts in sums.items()},
    }
    write_atomically(summary_path(path.parent, path.name), json.dumps(summary).encode())
    write_atomically(path, b"".join(frames))
    return len(ids)


def _count(people: dict[str, Counter], clip: dict) -> None:
    """Counts a clip by its decade of age and its labels; -1 is unknown."""
    for name, counts in people.items():
        value = clip.get(name, np.nan if name == "age" else UNKNOWN)
        counts[int(value if name != "age" else UNKNOWN if np.isnan(value) else value // 10)] += 1


def _empty_sums(part: Constituent) -> dict[str, np.ndarray]:
    return {key: np.zeros(part.width) for key in ("count", "sum", "squares")}


def _add(sums: dict[str, np.ndarray], value: np.ndarray) -> None:
    # Rounded to float16, as stored: the statistics describe what a reader gets.
    rows = np.asarray(value, np.float16).astype(np.float64)
    known = np.isfinite(rows)
    rows = np.where(known, rows, 0.0)
    sums["count"] += known.sum(0)
    sums["sum"] += rows.sum(0)
    sums["squares"] += np.square(rows).sum(0)


def finalise(directory: Path, schema: Schema, shards: dict[str, int], provenance: dict | None = None) -> dict[str, int]:
    """Merges the summaries of all shards and writes the metadata; returns the number of clips per split. Idempotent.

    `shards` is the number of shards of each split; all must exist. `provenance` describes how faces and attributes were
    made (constituents have their own fields for it). Without training clips there are no statistics: such a dataset is
    for sampling and evaluation, which use the statistics of the trained system.
    """
    summaries = {
        split: [json.loads(summary_path(directory, shard_name(split, i, n)).read_text()) for i in range(n)]
        for split, n in shards.items()
        if n
    }
    for split, parts in summaries.items():
        _write_index(directory, split, parts)
    train = [summary for summary in summaries.get("train", []) if summary["clips"]]
    statistics = {part.name: _mean_std(part, [s["sums"][part.name] for s in train]) for part in schema.constituents}
    metadata = {
        "format": FORMAT_VERSION,
        **schema.to_json(),
        "statistics": statistics if train else None,
        "provenance": provenance or {},
    }
    _write_tfds_metadata(directory, schema, summaries, metadata)
    return {split: sum(len(s["clips"]) for s in parts) for split, parts in summaries.items()}


def _write_index(directory: Path, split: str, summaries: list[dict]) -> None:
    """Writes the index of a split. Summaries by an earlier version lack what it needs: the reader then makes it."""
    if not all("lengths" in summary for summary in summaries) or not any(summary["clips"] for summary in summaries):
        return
    sizes = {shard_name(split, i, len(summaries)): summary["bytes"] for i, summary in enumerate(summaries)}
    index = Index(np.concatenate([spans_of(summary["lengths"]) for summary in summaries]))
    names = (pair for each in summaries for pair in zip(each["clips"], each["speaker_of_clip"], strict=True))
    write_atomically(directory / index_name(NAME, split), index.with_ids(names).save(sizes))


def clip_statistics(schema: Schema, clip: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Mean and standard deviation over the rows of one clip: `{constituent: {"mean": [width], "std": [width]}}`.

    For plots of a clip from a dataset without statistics.
    """
    found = {}
    for part in schema.constituents:
        sums = _empty_sums(part)
        _add(sums, clip[part.name])
        found[part.name] = {key: np.array(value, np.float32) for key, value in _mean_std(part, [sums]).items()}
    return found


def _mean_std(part: Constituent, sums: list[dict]) -> dict[str, list[float]]:
    """Mean and standard deviation per feature; the std of a missing or constant feature is 1."""
    total = _empty_sums(part)
    for shard in sums:
        for key in total:
            total[key] += np.array(shard[key])
    count = np.maximum(total["count"], 1)
    mean = total["sum"] / count
    std = np.sqrt(np.maximum(total["squares"] / count - mean**2, 0))
    std = np.where(std > 1e-6 * np.maximum(1, np.abs(mean)), std, 1.0)
    return {"mean": mean.tolist(), "std": std.tolist()}


def _write_tfds_metadata(directory: Path, schema: Schema, summaries: dict, metadata: dict) -> None:
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {
            "clip_id": tfds.features.Text(),
            "speaker_id": tfds.features.Text(),
            "face": tfds.features.Image(shape=(FACE_SIZE, FACE_SIZE, 3), encoding_format="png"),
            "age": tfds.features.Scalar(np.float32),
            **{name: tfds.features.ClassLabel(names=list(names)) for name, names in schema.labels.items()},
            # The default encoding stores float16 as float32.
            **{
                part.name: tfds.features.Tensor(shape=(part.rows, part.width), dtype=np.float16, encoding="bytes")
                for part in schema.constituents
            },
        }
    )
    template = tfds.core.ShardedFileTemplate(
        data_dir=directory,
        dataset_name=NAME,
        filetype_suffix="tfrecord",
        template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    )
    splits = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[len(s["clips"]) for s in parts],
            num_bytes=sum(s["bytes"] for s in parts),
            filename_template=template.replace(split=split),
        )
        for split, parts in summaries.items()
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=str(directory),
        features=features,
        split_infos=splits,
        version=FORMAT_VERSION,
        filename_template=template,
        check_data=False,  # the check needs TensorFlow
        metadata=tfds.core.MetadataDict(metadata),
    )
