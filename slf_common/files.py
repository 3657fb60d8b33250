"""Files: path parsing, write checks, atomic writes, and folders on this machine or in a bucket (gs://, s3://)."""

from __future__ import annotations

import os
import re
import secrets
import tempfile
from pathlib import Path
from typing import BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from slf_common.errors import UserError

URL = re.compile(r"(\w+::)*[A-Za-z][\w+.-]*://")  # gs://bucket, simplecache::s3://bucket
# Control characters, line breaks, and bytes that are not UTF-8: not every library accepts such paths.
UNUSABLE = re.compile("[\x00-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]")


def local_path(text: str | Path) -> Path:
    """A path on this machine, with `~` and `~user` expanded. Every path from a flag or a config is parsed here.

    Raises `UserError` for a URL, an empty path, an unknown home directory, and names that cannot be printed.
    """
    text = str(text).removeprefix("file://")
    if not text:
        raise UserError("an empty path was given; give a file or folder, or . for the current folder")
    if URL.match(text):
        raise UserError(
            f"{text}: must be a path on this machine; only datasets to read (--data, --gallery, --config.data.dir) "
            "can be in a bucket"
        )
    if UNUSABLE.search(text):
        raise UserError(f"{ascii(text)}: control characters and bytes other than UTF-8 cannot be in a path; rename it")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"{text}: the home directory is not known; set HOME, or give the path without ~") from None


def check_writable(folder: Path, *names: str, flag: str = "--out") -> None:
    """Raises `UserError` unless files can be written to `folder`; it need not exist yet. Leaves nothing behind.

    `names`: the files that will be written, and folders with a slash at the end.
    """
    folder = folder.absolute()
    existing = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    try:
        if existing == folder:
            # Has no name, so that nothing is left if this process is killed here.
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"0")
        else:
            # A temporary folder, so that several processes can run this check at once.
            with tempfile.TemporaryDirectory(prefix=".probe-", dir=existing) as probe:
                trial = Path(probe) / folder.relative_to(existing)
                trial.mkdir(parents=True, exist_ok=True)
                write_atomically(trial / "file", b"0")
    except OSError as error:
        reason = error.strerror or str(error)
        if existing.exists() and not existing.is_dir():
            reason = f"{existing} is a file"
        raise UserError(f"{folder}: cannot be written to ({reason}); choose another path with {flag}") from None
    for name in names:
        path = folder / name
        if name.endswith("/"):
            if os.path.lexists(path):
                check_writable(path, flag=flag)
        elif path.exists() and not path.is_file():
            kind = "a directory" if path.is_dir() else "not a regular file"
            raise UserError(f"{path}: this is {kind}, but a file must be written here; choose another path with {flag}")


def check_writable_file(path: Path, flag: str = "--out") -> None:
    """Raises `UserError` unless the file can be created or overwritten. Leaves nothing behind."""
    if not path.name or os.path.isdir(path):
        raise UserError(f"{flag} {path}: this is a directory; give the name of a file in it")
    check_writable(path.parent, path.name, flag=flag)


def write_atomically(path: Path, data: bytes) -> None:
    """Writes to a temporary file and renames it: the file is complete or absent. An `OSError` names the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{secrets.token_hex(4)}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename = str(path)  # not set for a full disk
        raise
    finally:
        temporary.unlink(missing_ok=True)


class Folder:
    """Reads and writes files of one folder by name. Raises `UserError` if its file system is not available."""

    _fs: fsspec.AbstractFileSystem
    _root: str

    def __init__(self, directory: str | Path) -> None:
        self.name = str(directory).rstrip("/") or "/"
        if not URL.match(self.name):
            self._fs, self._root = LocalFileSystem(), str(local_path(directory).absolute())
            return
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.name)
        except (ImportError, ValueError) as error:
            protocol = self.name.partition("://")[0]
            raise UserError(
                f"{self.name}: cannot open {protocol}:// paths ({error}); gs:// and s3:// need "
                'pip install -e ".[cloud]"'
            ) from None

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """The bytes of a file, or only those from `start` to `end`."""
        return self._fs.cat_file(f"{self._root}/{name}", start=start, end=end)

    def open(self, name: str) -> BinaryIO:
        return self._fs.open(f"{self._root}/{name}", "rb")

    def write(self, name: str, data: bytes) -> None:
        """Writes a file atomically: it is complete or absent."""
        if isinstance(self._fs, LocalFileSystem):
            write_atomically(Path(self._root) / name, data)
        else:
            self._fs.pipe_file(f"{self._root}/{name}", data)

    def sizes(self) -> dict[str, int]:
        """Bytes of each file here."""
        listed = self._fs.ls(self._root, detail=True)
        return {info["name"].rsplit("/", 1)[-1]: info["size"] for info in listed if info["type"] == "file"}
