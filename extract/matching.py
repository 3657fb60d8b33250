"""Matching the ids in a table to the clips and speakers on disk: exact up to spelling, or nearly equal."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePosixPath

from extract.clips import IMAGE, SOUND, VIDEO, compose

MAX_EXAMPLES = 3  # in a line


class IdIndex:
    """The ids of existing clips or speakers, to be looked up by the cells of a table."""

    def __init__(self, ids: Iterable[str]) -> None:
        self.ids = set(ids)

    def find(self, text: str) -> str | None:
        """Returns the id that a cell refers to, or None if there is none.

        A cell may use another Unicode normal form, backslashes as separators, a leading "./", a trailing slash,
        surrounding spaces or the suffix of a media file. Raises `ValueError` if it matches two ids.
        """
        if text in self.ids:
            return text
        key = _normalise(text)
        for form in (key, _without_suffix(key)):
            if found := self._by_key.get(form):
                if len(found) > 1:
                    raise ValueError(f"{text!r} is ambiguous: {found[0]!r} or {found[1]!r}; rename one")
                return found[0]
        return None

    def find_similar(self, text: str) -> list[str]:
        """Returns the ids that differ from a cell only in case, leading zeros or a ".0", as spreadsheets cause.

        They may belong to different people, so callers must reject the table rather than treat them as equal.
        """
        return [each for each in self._by_loose_key.get(loose_key(text), ()) if each != text]

    @functools.cached_property
    def _by_key(self) -> dict[str, list[str]]:
        return _group(self.ids, _normalise)

    @functools.cached_property
    def _by_loose_key(self) -> dict[str, list[str]]:
        return group_similar(self.ids)


def group_similar(ids: Iterable[str]) -> dict[str, list[str]]:
    """Groups ids by their `loose_key`; each group is sorted."""
    return _group(ids, loose_key)


def loose_key(text: str) -> str:
    """Returns an id in lower case with its numbers as a spreadsheet writes them: `001` and `1.0` become `1`."""
    parts = _without_suffix(_normalise(text)).casefold().split("/")
    return "/".join(re.sub(r"^0*([0-9]+)([.,]0*)?$", r"\1", part) for part in parts)


def format_examples(items: Sequence[object]) -> str:
    """Formats the first few items as `'a', 'b', 'c', ...`."""
    return ", ".join(map(str, items[:MAX_EXAMPLES])) + (", ..." if len(items) > MAX_EXAMPLES else "")


def _group(ids: Iterable[str], key: Callable[[str], str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for each in sorted(ids):
        groups.setdefault(key(each), []).append(each)
    return groups


def _normalise(text: str) -> str:
    text = compose(text).strip().replace("\\", "/")
    if not re.search(r"^\.?/|/\.?/|/\.?$", text):
        return text
    parts = PurePosixPath(text).parts
    return "/".join(part for part in parts if part not in ("/", "."))


def _without_suffix(key: str) -> str:
    stem, dot, suffix = key.rpartition(".")
    return stem if stem and f"{dot}{suffix.lower()}" in VIDEO + SOUND + IMAGE else key
