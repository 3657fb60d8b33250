"""The gallery of real faces: embeddings in a LanceDB table in a local folder, without a server."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from slf_common.errors import UserError

if TYPE_CHECKING:
    from lancedb.table import Table

METRICS = ("l2", "cosine")
QUERY_BATCH = 256  # faces in one query
INDEX_ABOVE = 200_000  # faces; larger galleries are searched by an approximate index, smaller ones exactly


class Gallery:
    """One table of real faces, each with its speaker's id.

    The table's name is a hash of what it was built from: it is built once, reused while embedder and faces are the
    same, and rebuilt when they change.
    """

    def __init__(self, folder: Path, metric: str) -> None:
        if metric not in METRICS:
            raise UserError(f"--metric {metric}: must be one of: {', '.join(METRICS)}")
        try:
            import lancedb
        except ImportError:
            raise UserError('the gallery needs LanceDB: pip install -e ".[evaluate]"') from None
        self._folder = folder.absolute()  # LanceDB would take a relative a:b for a URL
        self._metric: Literal["l2", "cosine"] = "l2" if metric == "l2" else "cosine"
        self._opened: Table | None = None
        with self._as_user_error():
            self._database = lancedb.connect(str(self._folder))

    def open(self, kind: str, built_from: Mapping) -> bool:
        """Opens the table of this kind that was built from `built_from`; returns False if there is none."""
        name = _name(kind, built_from)
        if name not in self._names():
            return False
        with self._as_user_error():
            self._opened = self._database.open_table(name)
        return True

    def build(self, kind: str, built_from: Mapping, speakers: Sequence[str], vectors: np.ndarray) -> None:
        """Writes the table from vectors [n, D], unless another evaluation did so meanwhile.

        Other tables are kept: another evaluation may be using them.
        """
        import pyarrow as pa

        if len(speakers) < 2:
            raise UserError(f"a gallery of {len(speakers)}: recall needs at least 2 faces of different speakers")
        vectors = np.ascontiguousarray(vectors, np.float32)
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        data = pa.table({"speaker_id": pa.array(list(speakers)), "vector": column})
        with self._as_user_error():
            self._opened = self._database.create_table(_name(kind, built_from), data, exist_ok=True)
        if len(speakers) > INDEX_ABOVE:
            from lancedb.index import IvfPq

            self._table.create_index("vector", config=IvfPq(distance_type=self._metric))

    @property
    def _table(self) -> Table:
        if self._opened is None:
            raise ValueError("open or build the gallery first")
        return self._opened

    @property
    def name(self) -> str:
        """The table's name: its kind and a hash of what it was built from."""
        return self._table.name

    def __len__(self) -> int:
        return self._table.count_rows()

    def read(self) -> tuple[list[str], np.ndarray]:
        """The speakers [G] and embeddings [G, D] of all faces."""
        with self._as_user_error():
            found = self._table.to_arrow()
        vectors = found["vector"].combine_chunks().flatten().to_numpy()
        return found["speaker_id"].to_pylist(), vectors.reshape(len(found), -1)

    def search(self, vectors: np.ndarray, k: int, *, exact: bool | None = None) -> list[list[str]]:
        """The speakers of the k faces nearest to each of vectors [n, D], nearest first; all faces if there are fewer.

        `exact`: whether to compare every face; None: in galleries of up to `INDEX_ABOVE` faces.
        """
        exact = len(self) <= INDEX_ABOVE if exact is None else exact
        found: list[list[str]] = [[] for _ in vectors]
        for first in range(0, len(vectors), QUERY_BATCH):
            part = list(np.asarray(vectors[first : first + QUERY_BATCH], np.float32))
            query: Any = self._table.search(part)  # its declared type lacks the methods of vector queries
            query = query.distance_type(self._metric).select(["speaker_id", "_distance"])
            query = query.bypass_vector_index() if exact else query.refine_factor(10)
            with self._as_user_error():
                answer = query.limit(k).to_arrow()
            # The results of several queries are concatenated and numbered; those of a single one have no number.
            numbers = answer["query_index"].to_pylist() if len(part) > 1 else [0] * len(answer)
            for number, speaker in zip(numbers, answer["speaker_id"].to_pylist(), strict=True):
                found[first + number].append(speaker)
        return found

    @contextlib.contextmanager
    def _as_user_error(self) -> Iterator[None]:
        """Turns what LanceDB raises (full disk, no permission, damaged files) into a `UserError`."""
        try:
            yield
        except (RuntimeError, ValueError, OSError) as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise UserError(
                f"{self._folder}: the gallery cannot be read or written ({line}); free some space, or remove this "
                "folder: it will be built again"
            ) from error

    def _names(self) -> list[str]:
        return list(self._database.list_tables(limit=10_000).tables)


def _name(kind: str, built_from: Mapping) -> str:
    digest = hashlib.sha256(json.dumps(built_from, sort_keys=True).encode()).hexdigest()[:16]
    return f"{kind}-{digest}"


def ranks(found: Sequence[Sequence[str]], truth: Sequence[str]) -> np.ndarray:
    """Rank [n] of the true speaker among those found, from 1; 0 if not among them."""
    return np.array([list(f).index(t) + 1 if t in f else 0 for f, t in zip(found, truth, strict=True)])
