"""The gallery of real faces: embeddings in a LanceDB table, embedded in a folder, no server."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from slf_common.errors import UserError

METRICS = ("l2", "cosine")
AT_ONCE = 256  # faces that are looked for together
INDEX_ABOVE = 200_000  # faces; from there on an approximate index answers, below it every search is exact


class Gallery:
    """One table of real faces, each with its speaker's id.

    The table's name tells what it was built from, so that it is built once, used again by whoever asks for the same,
    and built anew when the embedder or the faces change.
    """

    def __init__(self, folder: Path, metric: str) -> None:
        if metric not in METRICS:
            raise UserError(f"--metric {metric} is none of: {', '.join(METRICS)}")
        try:
            import lancedb
        except ImportError:
            raise UserError('the gallery needs LanceDB: pip install -e ".[evaluate]"') from None
        self._folder, self._metric, self._table = folder.absolute(), metric, None  # a relative a:b would be a URL
        with self._explained():
            self._database = lancedb.connect(str(self._folder))

    def open(self, kind: str, built_from: Mapping) -> bool:
        """Opens the table of this kind that was built from the same; False if there is none."""
        name = _name(kind, built_from)
        if name not in self._names():
            return False
        with self._explained():
            self._table = self._database.open_table(name)
        return True

    def build(self, kind: str, built_from: Mapping, speakers: Sequence[str], vectors: np.ndarray) -> None:
        """Writes the table anew from vectors [n, D]; older ones of the same kind are dropped."""
        import pyarrow as pa

        if len(speakers) < 2:
            raise UserError(f"a gallery of {len(speakers)}: recall needs at least 2 faces of different speakers")
        with self._explained():
            for name in self._names():
                if name.startswith(f"{kind}-"):
                    self._database.drop_table(name)
        vectors = np.ascontiguousarray(vectors, np.float32)
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        data = pa.table({"speaker_id": pa.array(list(speakers)), "vector": column})
        with self._explained():
            self._table = self._database.create_table(_name(kind, built_from), data)
        if len(speakers) > INDEX_ABOVE:
            from lancedb.index import IvfPq

            self._table.create_index("vector", config=IvfPq(distance_type=self._metric))

    @property
    def name(self) -> str:
        """The table's name, a function of what it was built from."""
        return self._table.name

    def __len__(self) -> int:
        return self._table.count_rows()

    def search(self, vectors: np.ndarray, k: int, *, exact: bool | None = None) -> list[list[str]]:
        """The speakers of the k nearest faces to each of vectors [n, D], nearest first.

        `exact`: whether every face is compared; None: up to `INDEX_ABOVE` faces. k beyond the gallery gives all of it.
        """
        exact = len(self) <= INDEX_ABOVE if exact is None else exact
        found: list[list[str]] = [[] for _ in vectors]
        for first in range(0, len(vectors), AT_ONCE):
            part = list(np.asarray(vectors[first : first + AT_ONCE], np.float32))
            query = self._table.search(part).distance_type(self._metric).select(["speaker_id", "_distance"])
            query = query.bypass_vector_index() if exact else query.refine_factor(10)
            answer = query.limit(k).to_arrow()
            # The neighbours of several come one after the other, numbered; those of one alone without a number.
            numbers = answer["query_index"].to_pylist() if len(part) > 1 else [0] * len(answer)
            for number, speaker in zip(numbers, answer["speaker_id"].to_pylist(), strict=True):
                found[first + number].append(speaker)
        return found

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """What LanceDB raises (no room, no permission, damaged files) as one line."""
        try:
            yield
        except (RuntimeError, ValueError, OSError) as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise UserError(
                f"{self._folder}: the gallery cannot be read or written ({line}); make room there, or remove this "
                "folder, and it is made again"
            ) from error

    def _names(self) -> list[str]:
        return list(self._database.list_tables(limit=10_000).tables)


def _name(kind: str, built_from: Mapping) -> str:
    digest = hashlib.sha256(json.dumps(built_from, sort_keys=True).encode()).hexdigest()[:16]
    return f"{kind}-{digest}"


def ranks(found: Sequence[Sequence[str]], truth: Sequence[str]) -> np.ndarray:
    """The place [n], from 1, of the true speaker among those found; 0 where he is not."""
    return np.array([list(f).index(t) + 1 if t in f else 0 for f, t in zip(found, truth, strict=True)])
