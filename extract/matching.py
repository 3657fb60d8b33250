"""Which clips and speakers the rows of a table mean: ids are found in other spellings, or their mistakes told."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePosixPath

from extract.clips import IMAGE, SOUND, VIDEO, composed

SHOWN = 3  # examples in a line


class Ids:
    """Ids that exist, of clips or of speakers."""

    def __init__(self, ids: Iterable[str]) -> None:
        self.ids = set(ids)

    def find(self, text: str) -> str | None:
        """The id that a cell of a table means, None where there is none.

        A cell may be in another normal form of Unicode, with backslashes for slashes, "./" in front, a slash at the
        end, spaces around it, or the ending of a media file. Raises `ValueError` where it can mean two ids.
        """
        if text in self.ids:
            return text
        key = _key(text)
        for form in (key, _without_ending(key)):
            if found := self._by_key.get(form):
                if len(found) > 1:
                    raise ValueError(f"{text!r} can mean {found[0]!r} or {found[1]!r}; rename one")
                return found[0]
        return None

    def near(self, text: str) -> list[str]:
        """Ids that differ in case, leading zeros or a ".0" from a cell: most likely a spreadsheet's doing.

        They are not taken for the same, as they may be different people: whoever asks refuses the table.
        """
        return [each for each in self._by_rough.get(rough(text), ()) if each != text]

    @functools.cached_property
    def _by_key(self) -> dict[str, list[str]]:
        return _group(self.ids, _key)

    @functools.cached_property
    def _by_rough(self) -> dict[str, list[str]]:
        return group(self.ids)


def group(ids: Iterable[str]) -> dict[str, list[str]]:
    """Ids in sorted order by their `rough` form."""
    return _group(ids, rough)


def rough(text: str) -> str:
    """An id without case, and its numbers as a spreadsheet writes them: `001` and `1.0` both as `1`."""
    parts = _without_ending(_key(text)).casefold().split("/")
    return "/".join(re.sub(r"^0*([0-9]+)([.,]0*)?$", r"\1", part) for part in parts)


def examples(items: Sequence[object]) -> str:
    """`'a', 'b', 'c', ...`: the first few."""
    return ", ".join(map(str, items[:SHOWN])) + (", ..." if len(items) > SHOWN else "")


def _group(ids: Iterable[str], form: Callable[[str], str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for each in sorted(ids):
        groups.setdefault(form(each), []).append(each)
    return groups


def _key(text: str) -> str:
    text = composed(text).strip().replace("\\", "/")
    if not re.search(r"^\.?/|/\.?/|/\.?$", text):
        return text
    parts = PurePosixPath(text).parts
    return "/".join(part for part in parts if part not in ("/", "."))


def _without_ending(key: str) -> str:
    stem, dot, ending = key.rpartition(".")
    return stem if stem and f"{dot}{ending.lower()}" in VIDEO + SOUND + IMAGE else key
