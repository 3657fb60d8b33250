"""The index of a split: where each record lies, and the ids of its clip and speaker; one file beside the shards."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from tfrecords.codec import FOOTER, HEADER


@dataclasses.dataclass(frozen=True)
class Index:
    """The index of the N records of a split.

    Attributes:
      spans: int64 [N, 2], offset in the shard, and length of the data.
      ids: UTF-8 bytes [2, N], of clips and speakers; None in an index that was made from the records' headers.
    """

    spans: np.ndarray
    ids: np.ndarray | None = None

    def with_ids(self, names: Iterable[tuple[str, str]]) -> Index:
        """The same index with the clip and speaker ids of all records."""
        return Index(self.spans, np.array([[name.encode() for name in pair] for pair in names]).T)

    def save(self, sizes: Mapping[str, int]) -> bytes:
        """The content of an index file. `sizes`: bytes of each shard, in order; the index is valid for these."""
        data = io.BytesIO()
        ids = np.zeros((0,)) if self.ids is None else self.ids
        np.savez(data, shards=_key(sizes), spans=self.spans, ids=ids)
        return data.getvalue()

    @classmethod
    def load(cls, data: bytes, sizes: Mapping[str, int]) -> Index:
        """Reads an index file. Raises `ValueError` if it is of other shards, other errors if it is damaged."""
        with np.load(io.BytesIO(data)) as saved:
            if str(saved["shards"]) != _key(sizes):
                raise ValueError("index of other shards")
            return cls(saved["spans"], saved["ids"] if saved["ids"].size else None)


def index_name(dataset: str, split: str) -> str:
    """The name of a split's index file."""
    return f"{dataset}-{split}.index.npz"


def spans_of(lengths: Sequence[int]) -> np.ndarray:
    """Offset in the shard and length [N, 2] of the data of a shard's records, from their lengths."""
    sizes = np.asarray(lengths, np.int64)
    frames = sizes + HEADER + FOOTER
    return np.stack([np.cumsum(frames) - frames, sizes], 1)


def _key(sizes: Mapping[str, int]) -> str:
    """Names and sizes of the shards. Not their times, which differ in copies of a dataset."""
    return json.dumps(list(sizes.items()))
