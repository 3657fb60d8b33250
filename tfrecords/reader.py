"""Reading a dataset: random access to clips, and shuffled batches whose whole position is one integer."""

from __future__ import annotations

import bisect
import contextlib
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grain
import numpy as np

from slf_common.errors import UserError
from slf_common.files import Folder
from tfrecords.codec import FOOTER, HEADER, CorruptShard, decode_clip, decode_names, index_shard, open_frame
from tfrecords.schema import Schema

TEXT = ("clip_id", "speaker_id")
MISSING = -1  # the length of a record that damage cut off


class Absent(UserError):
    """A folder without a dataset, or a dataset without clips in a split: never one that is damaged or unreadable."""


class Clips:
    """One split of a dataset folder, by index; a source for Grain.

    Attributes: `directory` as it was given, `schema`, `statistics`, `{constituent: {"mean": [width], "std": [width]}}`
    or None where the dataset has no training split, and `corrupt`, the indices of records found damaged so far.

    Args:
      directory: a local path, or a gs:// or s3:// one.
      skip_corrupt: damaged records are told on stderr, and the next whole one stands in their place.

    Raises `Absent` if the folder holds no dataset or no clips in this split, `CorruptShard` if a shard is damaged, and
    another `UserError` for whatever else cannot be read.
    """

    def __init__(self, directory: str | Path, split: str = "train", *, skip_corrupt: bool = False) -> None:
        self.directory, self.corrupt = directory, set()
        self._folder, self._skip = Folder(directory), skip_corrupt
        info, metadata = _read_metadata(self._folder)
        try:
            self.schema = Schema.from_json(metadata)
            self.statistics = metadata["statistics"] and {
                name: {key: np.array(value, np.float32) for key, value in both.items()}
                for name, both in metadata["statistics"].items()
            }
            name, lengths = info["name"], _shard_lengths(info)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{directory}: damaged dataset_info.json or metadata.json ({error!r}); run extract.run again"
            ) from None
        if not sum(lengths.get(split, [])):
            known = [name for name, parts in lengths.items() if sum(parts)]
            raise Absent(f"{directory}: no clips in split {split!r}; it has {', '.join(known) or 'none'}")
        count = len(lengths[split])
        self._names = [f"{name}-{split}.tfrecord-{i:05d}-of-{count:05d}" for i in range(count)]
        self._ends = np.cumsum(lengths[split])
        self._ids = f"{name}-{split}.ids.json"
        self._key, self._spans = self._index(f"{name}-{split}.index.npz", lengths[split])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict:
        """One clip as `codec.decode_clip` gives it, its CRC checked."""
        return self._decoded(index, lambda data: decode_clip(data, self.schema))

    def _decoded(self, index: int, decode: Callable[[bytes], Any]) -> Any:
        for number in ((index + i) % len(self) for i in range(len(self))):
            try:
                return decode(self._read(number))
            except CorruptShard as error:
                if not self._skip:
                    raise CorruptShard(f"{error}, or go on without it: --config.data.skip_corrupt=true") from None
                if number not in self.corrupt:
                    self.corrupt.add(number)
                    print(f"warning: {error} (skipped; {len(self.corrupt)} so far)", file=sys.stderr)
        raise UserError(f"{self.directory}: not one record of this split is whole; run extract.run again")

    def _read(self, index: int) -> bytes:
        shard = bisect.bisect_right(self._ends, index)
        record = index - (int(self._ends[shard - 1]) if shard else 0)
        offset, length = self._spans[index].tolist()
        name = f"{self._folder.name}/{self._names[shard]}"
        if length == MISSING:
            raise CorruptShard(f"{name}: record {record} is cut off; write this shard again")
        start = offset + HEADER
        return open_frame(self._folder.read(self._names[shard], start, start + length + FOOTER), name, record)

    def names(self) -> Iterator[tuple[str, str]]:
        """clip_id and speaker_id of each clip, in order, without decoding faces and features.

        What was read so far is kept beside the shards when the iterator closes, so no record is read twice for this.
        """
        names = self._saved_names()
        saved = len(names)
        yield from names
        try:
            for i in range(saved, len(self)):
                names.append(self._decoded(i, decode_names))
                yield names[-1]
        finally:
            if len(names) > saved and not self.corrupt:
                self._keep(self._ids, json.dumps({"key": self._key, "names": names}).encode())

    def _saved_names(self) -> list[tuple[str, str]]:
        """Those of the first clips, as far as they were kept for this state of the shards."""
        with contextlib.suppress(Exception):  # whatever is wrong with the file, the records have it all
            saved = json.loads(self._folder.read(self._ids))
            names = [(str(clip), str(speaker)) for clip, speaker in saved["names"]]
            if saved["key"] == self._key and len(names) <= len(self):
                return names
        return []

    def find(self, clip_id: str | None) -> dict:
        """The clip of that id, None for the first. Raises `UserError` if there is none."""
        if clip_id is None:
            return self[0]
        for i, (found, _) in enumerate(self.names()):
            if found == clip_id:
                return self[i]
        raise UserError(f"no clip {clip_id!r} among the {len(self)} of this split")

    def _index(self, cache: str, lengths: list[int]) -> tuple[str, np.ndarray]:
        """Offset and length [records, 2] of all records, and a key that tells this state of the shards from others.

        Found once: then they lie beside the shards.
        """
        try:
            stamps = self._folder.stamps()
        except Exception as error:  # each store has its own
            raise UserError(f"{self._folder.name}: the folder cannot be listed ({error})") from None
        for name in self._names:
            if name not in stamps:
                raise UserError(f"{self._folder.name}/{name}: shard is missing; run extract.run again to write it")
        key = json.dumps([(name, *stamps[name]) for name in self._names])
        if cache in stamps:
            # Whatever is wrong with it, it can be made again.
            with contextlib.suppress(Exception), np.load(io.BytesIO(self._folder.read(cache))) as saved:
                if str(saved["key"]) == key and saved["spans"].shape == (len(self), 2):
                    return key, saved["spans"]
        parts = [self._index_shard(*named, stamps) for named in zip(self._names, lengths, strict=True)]
        spans = np.concatenate(parts)
        if (spans[:, 1] != MISSING).all():
            data = io.BytesIO()
            np.savez(data, key=key, spans=spans)
            self._keep(cache, data.getvalue())
        return key, spans

    def _keep(self, name: str, data: bytes) -> None:
        """Writes what can be made again at any time."""
        with contextlib.suppress(Exception):  # a folder or bucket may be for reading only
            self._folder.write(name, data)

    def _index_shard(self, name: str, length: int, stamps: dict) -> np.ndarray:
        path = f"{self._folder.name}/{name}"
        with self._folder.open(name) as file:
            spans, fault = index_shard(file, stamps[name][0], path)
        if len(spans) != length and fault is None:
            fault = CorruptShard(
                f"{path}: {len(spans)} records, dataset_info.json says {length}; run extract.run again"
            )
        if fault and not (self._skip and len(spans) <= length):
            raise fault
        return np.concatenate([spans, np.tile([0, MISSING], (length - len(spans), 1))])


def first_split(directory: str | Path) -> str:
    """The training split's name, or that of the first split with clips in a dataset that has none.

    Raises `UserError` if the folder is no dataset.
    """
    info, _ = _read_metadata(Folder(directory))
    lengths = _shard_lengths(info)
    return next((name for name in ("train", *lengths) if sum(lengths.get(name, []))), "train")


def _shard_lengths(info: dict) -> dict[str, list[int]]:
    return {split["name"]: [int(n) for n in split["shardLengths"]] for split in info["splits"]}


def _read_metadata(folder: Folder) -> tuple[dict, dict]:
    """What dataset_info.json and metadata.json hold. Raises `Absent` where there is neither."""
    found = {name: _read_json(folder, name) for name in ("dataset_info.json", "metadata.json")}
    missing = [name for name, content in found.items() if content is None]
    if len(missing) == len(found):
        raise Absent(
            f"{folder.name}: no dataset here ({missing[0]} is missing). Make one from your own videos with "
            f"`python -m extract.run --config configs/base.py --videos DIR --out {folder.name}`, "
            "or the demo's with `make demo`"
        )
    if missing:
        raise UserError(
            f"{folder.name}/{missing[0]}: missing, though the rest of the dataset is there; run extract.run again"
        )
    return found["dataset_info.json"], found["metadata.json"]


def _read_json(folder: Folder, name: str) -> dict | None:
    """A JSON file, None where there is none. Raises `UserError` if it cannot be read."""
    try:
        text = folder.read(name)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:  # each store has its own for no network, no credentials, no permission
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{folder.name}/{name}: cannot be read ({reason})") from None
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{folder.name}/{name}: not valid JSON ({error}); run extract.run again") from None


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
    reads its own `batch_size` clips of the global batch. Raises `UserError` if the split is shorter than that.
    """
    index, count = process
    if len(clips) < batch_size * count:
        raise UserError(
            f"{clips.directory}: {len(clips)} clips, fewer than a batch of {batch_size * count}; "
            "extract more, or lower config.train.batch_size"
        )
    stream = grain.MapDataset.source(clips).seed(seed).shuffle().repeat()[index::count]
    stream = stream.map(_without_text).batch(batch_size)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)  # in batches
    iterator = iter(stream.to_iter_dataset(options))
    iterator.set_state({"next_index": start})
    return iterator


def _without_text(clip: dict) -> dict:
    return {key: value for key, value in clip.items() if key not in TEXT}


def stack(clips: list[dict]) -> dict[str, np.ndarray]:
    """Clips as one batch of arrays; text is left out."""
    return {key: np.stack([clip[key] for clip in clips]) for key in clips[0] if key not in TEXT}
