"""The configuration reference: tables of every key, default and comment in configs/base.py, for the docs site.

    python docs/config_reference.py        # prints the tables

Reads the file with `ast` and `tokenize`; nothing is imported or run. As a MkDocs hook it fills in the marker
`{{ config_reference }}` of docs/configuration.md.
"""

from __future__ import annotations

import ast
import dataclasses
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

CONFIG = Path(__file__).parents[1] / "configs" / "base.py"
MARKER = "{{ config_reference }}"
TOP = "run"  # heading of the keys that are in no group


@dataclasses.dataclass(frozen=True)
class Entry:
    """One setting: its dotted key, its default as source text, and its comment ("" if it has none)."""

    key: str
    default: str
    comment: str


@dataclasses.dataclass(frozen=True)
class Reference:
    """All settings in the file's order, and the comment above each group (`{key: text}`)."""

    entries: tuple[Entry, ...]
    notes: dict[str, str]


def read(source: str) -> Reference:
    """Reads the assignments `config.KEY = VALUE` in `get_config`.

    A dict, a `dict(...)` or a `ConfigDict(...)` is a group. A comment on a setting's own line describes it; a comment
    above it describes it if there is none on the line. A setting of a second stage without a comment has the first's.
    """
    beside, above = _comments(source)
    entries: list[Entry] = []
    notes: dict[str, str] = {}
    for key, value, line in _assignments(ast.parse(source)):
        if _items(value) is not None and line in above:
            notes[key] = above.pop(line)
        for leaf, node, leaf_line in _leaves(key, value, line):
            comment = beside.get(leaf_line) or beside.get(node.end_lineno or 0) or above.get(leaf_line, "")
            entries.append(Entry(leaf, _default(source, node), comment))
    return Reference(tuple(_share_comments(entries)), notes)


def _comments(source: str) -> tuple[dict[int, str], dict[int, str]]:
    """Comments by the line they end, and whole-line comments by the line of code that follows them."""
    lines = source.splitlines()
    beside: dict[int, str] = {}
    whole: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            text = token.string.lstrip("# ").strip()
            if text.startswith(("fmt:", "noqa", "type:")):
                continue
            alone = not lines[token.start[0] - 1][: token.start[1]].strip()
            (whole if alone else beside)[token.start[0]] = text
    above: dict[int, str] = {}
    for line, text in whole.items():
        if line - 1 in whole:
            continue
        block = [text]
        while line + 1 in whole:
            line += 1
            block.append(whole[line])
        above[line + 1] = " ".join(block)
    return beside, above


def _assignments(tree: ast.Module) -> Iterator[tuple[str, ast.expr, int]]:
    """Key, value and line of each `config.KEY = VALUE`; `config.a, config.b = 0, 1` counts as two."""
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "get_config")
    for statement in next(functions).body:
        if not isinstance(statement, ast.Assign):
            continue
        target, value = statement.targets[0], statement.value
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            pairs = list(zip(target.elts, value.elts, strict=True))
        else:
            pairs = [(target, value)]
        for left, right in pairs:
            name = ast.unparse(left)
            if name.startswith("config."):
                yield name.removeprefix("config."), right, statement.lineno


def _items(value: ast.expr) -> list[tuple[str, ast.expr, int]] | None:
    """Name, value and line of a group's members; None if `value` is a leaf."""
    if isinstance(value, ast.Dict):
        names = [ast.literal_eval(key) for key in value.keys if key is not None]
        return [(name, item, item.lineno) for name, item in zip(names, value.values, strict=True)]
    if not (isinstance(value, ast.Call) and ast.unparse(value.func) in ("dict", "ml_collections.ConfigDict")):
        return None
    if value.args:
        return _items(value.args[0])
    return [(str(keyword.arg), keyword.value, keyword.lineno) for keyword in value.keywords]


def _leaves(key: str, value: ast.expr, line: int) -> Iterator[tuple[str, ast.expr, int]]:
    items = _items(value)
    if items is None:
        yield key, value, line
        return
    for name, item, item_line in items:
        yield from _leaves(f"{key}.{name}", item, item_line)


def _default(source: str, value: ast.expr) -> str:
    """A value as it is written, or on one line without the comments in it."""
    text = ast.get_source_segment(source, value) or ""
    return ast.unparse(value).replace("'", '"') if "\n" in text else text


def _share_comments(entries: list[Entry]) -> Iterator[Entry]:
    """Gives `x.upsampler.y` the comment of `x.base.y` where it has none of its own."""
    comments = {entry.key: entry.comment for entry in entries}
    for entry in entries:
        shared = comments.get(entry.key.replace(".upsampler.", ".base."), "")
        yield dataclasses.replace(entry, comment=entry.comment or shared)


def markdown(reference: Reference) -> str:
    """One section with a table for each top-level group."""
    groups: dict[str, list[Entry]] = {TOP: []}
    for entry in reference.entries:
        group = entry.key.split(".")[0] if "." in entry.key else TOP
        groups.setdefault(group, []).append(entry)
    parts = []
    for group, entries in groups.items():
        notes = [text for key, text in reference.notes.items() if key.split(".")[0] == group]
        rows = [f"| `{e.key}` | `{e.default}` | {_escape(e.comment)} |" for e in entries]
        table = "\n".join(["| key | default | meaning |", "|---|---|---|", *rows])
        parts += [f"## {group}", *map(_escape, notes), table]
    return "\n\n".join(parts) + "\n"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def on_page_markdown(text: str, **_: object) -> str:
    """The MkDocs hook."""
    if MARKER not in text:
        return text
    return text.replace(MARKER, markdown(read(CONFIG.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    print(markdown(read(CONFIG.read_text(encoding="utf-8"))))
