"""The data of each visitor of the page: kept in memory and in one folder, and deleted with the visit."""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import shutil
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from app.limits import Limits
from app.system import Person
from slf_common.errors import UserError

if TYPE_CHECKING:
    from extract.recordings import Recording

SWEEPS = 10.0  # seconds between two deletions of what has expired, or less if the limits are shorter


@dataclasses.dataclass
class Visit:
    """A visitor's data.

    Attributes:
      folder: uploads that wait to be read, and results.
      voice, thumbnail: what later requests of the visitor use.
      person: the inputs of the last request.
      used: time of the last request, or of closing the page.
      closed: whether the page was closed.
    """

    folder: Path
    voice: Recording | None = None
    thumbnail: np.ndarray | None = None
    person: Person | None = None
    used: float = dataclasses.field(default_factory=time.monotonic)
    closed: bool = False


class Visits:
    """All visits, by session. As a context manager it also deletes what has expired, in a thread of its own.

    Args:
      root: folder for everything that visitors upload (`uploads`) and receive (`results`).
    """

    def __init__(self, root: Path, limits: Limits) -> None:
        self.uploads, self.results = root / "uploads", root / "results"
        for folder in (self.uploads, self.results):
            folder.mkdir()
        self._limits, self._visits = limits, dict[str, Visit]()
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._sweep_until_ended, daemon=True)

    def __enter__(self) -> Visits:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def __len__(self) -> int:
        return len(self._visits)

    def open(self, session: str) -> Visit:
        """Begins a visit; its folder has a name that cannot be guessed, since results are served from there."""
        visit = Visit(self.results / secrets.token_urlsafe(16))
        with self._lock:
            self._visits[session] = visit
            visit.folder.mkdir()
        return visit

    def get(self, session: str) -> Visit:
        """The visit of a session. Raises `UserError` if its data has been deleted."""
        with self._lock:
            visit = self._visits.get(session)
            if visit is None:
                minutes = self._limits.idle_seconds / 60
                raise UserError(f"your data was deleted after {minutes:g} minutes without a request; reload the page")
            visit.used = time.monotonic()
        return visit

    def close(self, session: str) -> None:
        """Notes that a page was closed, or lost its connection; its data is deleted soon after its last request."""
        with self._lock:
            if visit := self._visits.get(session):
                visit.used, visit.closed = time.monotonic(), True

    def sweep(self) -> None:
        """Deletes visits that have expired, all results but those of the others, and old uploads."""
        now = time.monotonic()
        with self._lock:
            self._visits = {key: visit for key, visit in self._visits.items() if not self._has_expired(visit, now)}
            folders = set(self.results.iterdir()) - {visit.folder for visit in self._visits.values()}
        for folder in folders:  # also those that a request wrote after its visit had expired
            shutil.rmtree(folder, ignore_errors=True)
        delete_old(self.uploads, self._limits.upload_seconds)

    def _has_expired(self, visit: Visit, now: float) -> bool:
        return now - visit.used > (self._limits.closed_seconds if visit.closed else self._limits.idle_seconds)

    def _sweep_until_ended(self) -> None:
        limits = self._limits
        while not self._ended.wait(min(SWEEPS, limits.idle_seconds, limits.closed_seconds, limits.upload_seconds)):
            self.sweep()


def delete_old(folder: Path, seconds: float) -> None:
    """Deletes files that have not changed for that long, then folders that have become empty."""
    oldest = time.time() - seconds
    for path in sorted(folder.rglob("*"), reverse=True):  # what is in a folder before the folder
        with contextlib.suppress(OSError):  # in use, or gone already
            if path.stat().st_ctime < oldest:
                path.rmdir() if path.is_dir() else path.unlink()
