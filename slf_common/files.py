"""Files: atomic writes, and folders on this machine or in a bucket (gs://, s3://) through fsspec."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from slf_common.errors import UserError


def write_atomically(path: Path, data: bytes) -> None:
    """Writes under a temporary name and renames: the file is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{secrets.token_hex(4)}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class Folder:
    """Reads and writes files by name. Raises `UserError` if no such file system can be reached at all."""

    def __init__(self, directory: str | Path) -> None:
        self.name = str(directory).rstrip("/")
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.name)
        except (ImportError, ValueError) as error:
            protocol = self.name.partition("://")[0]
            raise UserError(
                f"{self.name}: cannot open {protocol}:// paths ({error}); gs:// and s3:// need "
                'pip install -e ".[cloud]"'
            ) from None

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """A file's bytes, or those from `start` to `end`, without the rest of it."""
        return self._fs.cat_file(f"{self._root}/{name}", start=start, end=end)

    def open(self, name: str) -> BinaryIO:
        return self._fs.open(f"{self._root}/{name}", "rb")

    def write(self, name: str, data: bytes) -> None:
        """Writes a file, which is whole or absent."""
        if isinstance(self._fs, LocalFileSystem):
            write_atomically(Path(self._root) / name, data)
        else:
            self._fs.pipe_file(f"{self._root}/{name}", data)

    def stamps(self) -> dict[str, tuple[int, str]]:
        """Size, and what else tells one state of a file from another, of each file here."""
        found = {}
        for info in self._fs.ls(self._root, detail=True):
            if info["type"] == "file":
                change = next((str(info[key]) for key in ("mtime", "ETag", "etag", "updated") if key in info), "")
                found[info["name"].rsplit("/", 1)[-1]] = (info["size"], change)
        return found
