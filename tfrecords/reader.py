"""Reading a dataset: random access to clips, and shuffled batches whose state is a single integer."""

from __future__ import annotations

import bisect
import contextlib
import json
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, cast

import grain
import numpy as np

from slf_common.errors import UserError
from slf_common.files import Folder
from tfrecords.codec import FOOTER, HEADER, CorruptShard, decode_clip, decode_names, index_shard, open_frame
from tfrecords.index import Index, index_name
from tfrecords.schema import Schema

TEXT = ("clip_id", "speaker_id")
INFO, METADATA = "dataset_info.json", "metadata.json"
MISSING = -1  # stands for the length of a record after the end of a truncated shard


class Absent(UserError):
    """The folder holds no dataset, or the split no clips. Not raised for a damaged or unreadable dataset."""


class Clips:
    """Random access to the clips of one split of a dataset; a data source for Grain.

    Attributes:
      directory: as given.
      schema: the constituents and labels of the dataset.
      statistics: `{constituent: {"mean": [width], "std": [width]}}` of the training split, None if there is none.
      provenance: how the constituents, faces and attributes were made, as `extract.chunk.Models.provenance` says.
      corrupt: indices of the damaged records found so far.

    Args:
      directory: a local path, or a gs:// or s3:// URL.
      skip_corrupt: report damaged records on stderr and return the next valid record in their place.

    Raises `Absent` if the folder holds no dataset or no clips in this split, `CorruptShard` if a shard is damaged, and
    `UserError` if something else cannot be read.
    """

    def __init__(self, directory: str | Path, split: str = "train", *, skip_corrupt: bool = False) -> None:
        self.directory = directory
        self.corrupt: set[int] = set()
        self._folder, self._skip = Folder(directory), skip_corrupt
        info, metadata = _read_metadata(self._folder)
        try:
            self.schema = Schema.from_json(metadata)
            self.statistics = metadata["statistics"] and {
                name: {key: np.array(value, np.float32) for key, value in both.items()}
                for name, both in metadata["statistics"].items()
            }
            self.provenance: dict[str, Any] = dict(metadata["provenance"])
            name, lengths = info["name"], _shard_lengths(info)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{directory}: damaged {INFO} or {METADATA} ({error!r}); run extract.run again") from None
        if not sum(lengths.get(split, [])):
            known = [name for name, parts in lengths.items() if sum(parts)]
            raise Absent(f"{directory}: no clips in split {split!r}; it has {', '.join(known) or 'none'}")
        count = len(lengths[split])
        self._names = [f"{name}-{split}.tfrecord-{i:05d}-of-{count:05d}" for i in range(count)]
        self._ends = np.cumsum(lengths[split])
        self._cache = index_name(name, split)
        self._sizes = self._shard_sizes()
        self._index = self._open_index(lengths[split])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict:
        """One clip as from `codec.decode_clip`; checks its CRC."""
        return self._decode(index, lambda data: decode_clip(data, self.schema))

    def read(self, index: int, fields: Collection[str]) -> dict:
        """These fields of a clip; others are not decoded. Checks the record's CRC."""
        return self._decode(index, lambda data: decode_clip(data, self.schema, fields))

    def _decode(self, index: int, decode: Callable[[bytes], Any]) -> Any:
        """Decodes a record; with `skip_corrupt`, the first valid one from this index on."""
        for number in ((index + i) % len(self) for i in range(len(self))):
            try:
                return decode(self._read(number))
            except CorruptShard as error:
                if not self._skip:
                    raise CorruptShard(f"{error}, or skip it with --config.data.skip_corrupt=true") from None
                if number not in self.corrupt:
                    self.corrupt.add(number)
                    print(f"warning: {error} (skipped; {len(self.corrupt)} so far)", file=sys.stderr)
        raise UserError(f"{self.directory}: all records of this split are damaged; run extract.run again")

    def _read(self, index: int) -> bytes:
        shard = bisect.bisect_right(self._ends, index)
        record = index - (int(self._ends[shard - 1]) if shard else 0)
        offset, length = self._index.spans[index].tolist()
        name = f"{self._folder.name}/{self._names[shard]}"
        if length == MISSING:
            raise CorruptShard(f"{name}: record {record} is missing, the file is truncated; write this shard again")
        start = offset + HEADER
        return open_frame(self._folder.read(self._names[shard], start, start + length + FOOTER), name, record)

    def names(self) -> Iterator[tuple[str, str]]:
        """Yields clip_id and speaker_id of each clip, in order, from the index: reads no records."""
        for clip_id, speaker_id in zip(*self._ids(), strict=True):
            yield clip_id.decode(), speaker_id.decode()

    def _ids(self) -> np.ndarray:
        """The ids in the index. An index without them, of a dataset by an earlier version, is made again with them."""
        if self._index.ids is None:
            path = f"{self._folder.name}/{self._cache}"
            print(f"note: {path}: reading the ids of {len(self)} records once, to index them", file=sys.stderr)
            self._index = self._index.with_ids(self._decode(i, decode_names) for i in range(len(self)))
            if not self.corrupt:
                self._write_index()
        return cast(np.ndarray, self._index.ids)

    def locate(self, clip_id: str) -> int | None:
        """The index of the first clip with this id; None if there is none."""
        found = np.flatnonzero(self._ids()[0] == clip_id.encode())
        return int(found[0]) if len(found) else None

    def find(self, clip_id: str | None) -> dict:
        """The clip with this id; the first clip for None. Raises `UserError` if there is none."""
        if clip_id is None:
            return self[0]
        index = self.locate(clip_id)
        if index is None:
            raise UserError(f"{self.directory}: no clip {clip_id!r} among the {len(self)} clips of this split")
        clip = self[index]
        if clip["clip_id"] != clip_id:
            path = f"{self._folder.name}/{self._cache}"
            raise UserError(f"{path}: has clip {clip_id!r} where the shard has {clip['clip_id']!r}; remove this file")
        return clip

    def _shard_sizes(self) -> dict[str, int]:
        """Bytes of each shard, in order."""
        try:
            sizes = self._folder.sizes()
        except Exception as error:  # the type depends on the store
            raise UserError(f"{self._folder.name}: the folder cannot be listed ({error})") from None
        for name in self._names:
            if name not in sizes:
                raise UserError(f"{self._folder.name}/{name}: shard is missing; run extract.run again to write it")
        return {name: sizes[name] for name in self._names}

    def _open_index(self, lengths: list[int]) -> Index:
        """The index that was written with the shards or by an earlier reader, or else one of the records' headers."""
        with contextlib.suppress(Exception):  # it is made again if it is missing, damaged or of other shards
            index = Index.load(self._folder.read(self._cache), self._sizes)
            if index.spans.shape == (len(self), 2):
                return index
        parts = [self._index_shard(*each) for each in zip(self._names, lengths, strict=True)]
        self._index = Index(np.concatenate(parts))
        if (self._index.spans[:, 1] != MISSING).all():
            self._write_index()
        return self._index

    def _write_index(self) -> None:
        with contextlib.suppress(Exception):  # the folder or bucket may be read-only
            self._folder.write(self._cache, self._index.save(self._sizes))

    def _index_shard(self, name: str, length: int) -> np.ndarray:
        path = f"{self._folder.name}/{name}"
        with self._folder.open(name) as file:
            spans, fault = index_shard(file, self._sizes[name], path)
        if len(spans) != length and fault is None:
            fault = CorruptShard(
                f"{path}: {len(spans)} records, but dataset_info.json lists {length}; run extract.run again"
            )
        if fault and not (self._skip and len(spans) <= length):
            raise fault
        return np.concatenate([spans, np.tile([0, MISSING], (length - len(spans), 1))])


def first_split(directory: str | Path) -> str:
    """The name of the training split or, if it has no clips, of the first split with clips.

    Raises `UserError` if the folder holds no dataset.
    """
    info, _ = _read_metadata(Folder(directory))
    lengths = _shard_lengths(info)
    return next((name for name in ("train", *lengths) if sum(lengths.get(name, []))), "train")


def _shard_lengths(info: dict) -> dict[str, list[int]]:
    return {split["name"]: [int(n) for n in split["shardLengths"]] for split in info["splits"]}


def _read_metadata(folder: Folder) -> tuple[dict, dict]:
    """The contents of dataset_info.json and metadata.json. Raises `Absent` if both are missing."""
    info, metadata = (_read_json(folder, name) for name in (INFO, METADATA))
    if info is None and metadata is None:
        raise Absent(
            f"{folder.name}: no dataset here ({INFO} is missing). Make one from your own videos with "
            f"`python -m extract.run --config configs/base.py --videos DIR --out {folder.name}`, "
            "or the demo's with `make demo`"
        )
    if info is None or metadata is None:
        missing = INFO if info is None else METADATA
        raise UserError(
            f"{folder.name}/{missing}: missing from a dataset that is otherwise there; run extract.run again"
        )
    return info, metadata


def _read_json(folder: Folder, name: str) -> dict | None:
    """The contents of a JSON file, None if it is missing. Raises `UserError` if it cannot be read."""
    try:
        text = folder.read(name)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:  # no network, credentials or permission: the type depends on the store
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
    """Endless batches as arrays with a leading batch axis, globally shuffled in another order each epoch.

    The stream depends only on `seed`: batch k is always the same, so its state is `start`, the number of batches used
    before. `process` is (index, count) of this process; each reads its own `batch_size` clips of the global batch.
    Raises `UserError` if the split has fewer clips than a global batch.
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
    """Stacks clips to a batch of arrays, without the ids."""
    return {key: np.stack([clip[key] for clip in clips]) for key in clips[0] if key not in TEXT}
