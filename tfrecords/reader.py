"""Reading a dataset: random access to clips, and shuffled batches whose whole position is one integer."""

from __future__ import annotations

import bisect
import json
from collections.abc import Iterator
from pathlib import Path

import grain
import numpy as np

from tfrecords.cli import UserError
from tfrecords.codec import decode_clip, index_shard, read_span
from tfrecords.schema import Schema

TEXT = ("clip_id", "speaker_id")


class Clips:
    """One split of a dataset folder, by index; a source for Grain.

    Attributes: `directory`, `schema`, and `statistics`, `{constituent: {"mean": [width], "std": [width]}}`.
    Raises `UserError` if the folder is no dataset, `CorruptShard` if a shard is damaged.
    """

    def __init__(self, directory: str | Path, split: str = "train") -> None:
        self.directory = directory = Path(directory)
        info, metadata = (_read_json(directory, name) for name in ("dataset_info.json", "metadata.json"))
        self.schema = Schema.from_json(metadata)
        self.statistics = {
            name: {key: np.array(value, np.float32) for key, value in both.items()}
            for name, both in metadata["statistics"].items()
        }
        splits = {s["name"]: [int(n) for n in s["shardLengths"]] for s in info["splits"]}
        if not sum(splits.get(split, [])):
            raise UserError(f"{directory}: no clips in split {split!r}; it has {', '.join(splits) or 'none'}")
        self._shards = _open_shards(directory, info["name"], split, splits[split])
        self._ends = np.cumsum(splits[split]).tolist()

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict:
        """One clip as `codec.decode_clip` gives it, its CRC checked."""
        shard = bisect.bisect_right(self._ends, index)
        path, spans = self._shards[shard]
        record = index - (self._ends[shard - 1] if shard else 0)
        offset, length = spans[record]
        return decode_clip(read_span(path, record, int(offset), int(length)), self.schema)

    def find(self, clip_id: str | None) -> dict:
        """The clip of that id, None for the first. Raises `UserError` if there is none."""
        for i in range(len(self)):
            clip = self[i]
            if clip_id in (None, clip["clip_id"]):
                return clip
        raise UserError(f"no clip {clip_id!r} among the {len(self)} of this split")


def _read_json(directory: Path, name: str) -> dict:
    try:
        return json.loads((directory / name).read_text())
    except FileNotFoundError:
        raise UserError(
            f"{directory}: no dataset here ({name} is missing). Make one from your own videos with "
            f"`python -m extract.run --config configs/base.py --videos DIR --out {directory}`, "
            "or the demo's with `make demo`"
        ) from None
    except json.JSONDecodeError as error:
        raise UserError(f"{directory / name}: not valid JSON ({error}); run extract.run again") from None


def _open_shards(directory: Path, name: str, split: str, lengths: list[int]) -> list[tuple[Path, np.ndarray]]:
    shards = []
    for i, length in enumerate(lengths):
        path = directory / f"{name}-{split}.tfrecord-{i:05d}-of-{len(lengths):05d}"
        if not path.is_file():
            raise UserError(f"{path}: shard is missing; run extract.run again to write it")
        spans = index_shard(path)
        if len(spans) != length:
            raise UserError(f"{path}: {len(spans)} records, dataset_info.json says {length}; run extract.run again")
        shards.append((path, spans))
    return shards


def batches(
    clips: Clips,
    batch_size: int,
    *,
    seed: int,
    start: int = 0,
    process: tuple[int, int] = (0, 1),
    threads: int = 2,
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches in a global shuffle that differs each epoch, as arrays with a leading batch axis.

    The stream is a function of `seed` alone: batch k is the same however often the reader is reopened, so
    `start` (how many batches were used before) is its whole state. `process`: (index, count) of hosts; each
    reads its own `batch_size` clips of the global batch.
    """
    index, count = process
    stream = grain.MapDataset.source(clips).seed(seed).shuffle().repeat()[index::count]
    stream = stream.map(_without_text).batch(batch_size)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads * batch_size)
    iterator = iter(stream.to_iter_dataset(options))
    iterator.set_state({"next_index": start})
    return iterator


def _without_text(clip: dict) -> dict:
    return {key: value for key, value in clip.items() if key not in TEXT}


def stack(clips: list[dict]) -> dict[str, np.ndarray]:
    """Clips as one batch of arrays; text is left out."""
    return {key: np.stack([clip[key] for clip in clips]) for key in clips[0] if key not in TEXT}
