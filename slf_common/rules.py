"""Rules that define the valid values of a config, and the check of a config against them.

A rule belongs to a key such as `data.threads`. In the key of a rule, `*` matches any name: such a rule is for a table
that accepts new keys.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import numbers
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from slf_common.errors import UserError

INT32_MAX = 2**31 - 1  # steps, seeds and sizes are int32 on a device
FLOAT32_RANGE = (1.1754944e-38, 3.4028235e38)  # other magnitudes become 0 or infinity on a device


@dataclasses.dataclass(frozen=True)
class Rule:
    """The valid values of one key.

    text: completes the sentence "must be ..." of error messages.
    read: converts a value to the type of the setting (1e5 to an int, 1 to a float). Raises `ValueError` if the value is
      not valid; its message, if any, is a hint for the user.
    """

    text: str
    read: Callable[[Any], Any]


def integer(least: int, most: int = INT32_MAX) -> Rule:
    """A whole number; 1e5 and 2.0 are accepted."""

    def read(value: Any) -> int:
        if not _is_number(value) or value != value // 1:
            raise ValueError
        if not least <= value <= most:
            raise ValueError(f"at most {most}" if value > most else "")
        return int(value)

    bounds = f"of at least {least}" if most == INT32_MAX else f"from {least} to {most}"
    return Rule(f"a whole number {bounds}", read)


def real(
    least: float = -math.inf, most: float = math.inf, *, above: float = -math.inf, below: float = math.inf
) -> Rule:
    """A number that is finite in float32 and does not underflow to 0."""

    def read(value: Any) -> float:
        if not _is_number(value) or not (least <= value <= most and above < value < below):
            raise ValueError
        if value and not FLOAT32_RANGE[0] <= abs(value) <= FLOAT32_RANGE[1]:
            raise ValueError("it is out of the range of float32")
        return float(value)

    if math.isfinite(least) and math.isfinite(most):
        return Rule(f"a finite number from {least:g} to {most:g}", read)
    bounds = {"of at least": least, "above": above, "of at most": most, "below": below}
    described = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if math.isfinite(bound))
    return Rule(f"a finite number {described}".strip(), read)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def flag() -> Rule:
    """True or false."""

    def read(value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError
        return value

    return Rule("true or false", read)


def text(*, empty: bool = True) -> Rule:
    """Any string; without `empty`, one with more than whitespace."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or not (empty or value.strip()):
            raise ValueError
        return value

    return Rule("a string" if empty else "a non-empty string", read)


def choice(options: Iterable[str]) -> Rule:
    """One of these strings."""
    options = tuple(options)

    def read(value: Any) -> str:
        if value not in options:
            near = difflib.get_close_matches(str(value).lower(), options, 1)
            raise ValueError(f"did you mean {near[0]!r}?" if near else "")
        return value

    return Rule(f"one of: {', '.join(option or repr(option) for option in options)}", read)


def each(rule: Rule, least: int = 0, most: int | None = None, *, distinct: Callable[[Any], Any] | None = None) -> Rule:
    """A tuple or list of `least` to `most` values that are valid by `rule`.

    `distinct` maps each value to a key; all keys must differ.
    """

    def read(value: Any) -> Sequence:
        if not isinstance(value, (tuple, list)) or len(value) < least or (most is not None and len(value) > most):
            raise ValueError
        values = [rule.read(one) for one in value]
        if distinct and len(set(map(distinct, values))) < len(values):
            raise ValueError("an entry is repeated")
        return type(value)(values)

    size = f"{least}" if most == least else f"at least {least}" if most is None else f"{least} to {most}"
    noun = "entry" if (most or least) == 1 else "entries"
    entries = " ".join(filter(None, (size if least or most else "", "distinct" if distinct else "", noun)))
    return Rule(f"a tuple of {entries}, each entry {rule.text}", read)


def either(*rules: Rule) -> Rule:
    """A value that is valid by one of the rules."""

    def read(value: Any) -> Any:
        for rule in rules:
            try:
                return rule.read(value)
            except ValueError:
                continue
        raise ValueError

    return Rule(", or ".join(rule.text for rule in rules), read)


def constant(value: float) -> Rule:
    """Exactly this number, such as a 0 that turns something off."""

    def read(given: Any) -> float:
        if isinstance(given, bool) or given != value:
            raise ValueError
        return value

    return Rule(f"{value:g}", read)


def check(
    config: ml_collections.ConfigDict, rules: Mapping[str, Rule], *, root: str = "", ours: Callable[[str], bool] = bool
) -> None:
    """Checks every value of a config, and converts numbers to the type of their rule (1e5 to an int).

    Args:
      root: the key of `config`, if it is a group of a larger config.
      ours: whether to check a key; all by default.

    Raises `UserError` that names the first key that is unknown, missing or has an invalid value.
    """
    prefix = f"{root}." if root else ""
    rules = {key: rule for key, rule in rules.items() if ours(key)}
    leaves = {key: value for key, value in find_leaves(config, prefix) if ours(key)}
    for key, value in list(leaves.items()):
        if _is_group(rules, key) and isinstance(value, ml_collections.ConfigDict):
            del leaves[key]  # an empty table
        elif find_rule(rules, key) is None:
            raise UserError(f"config.{key}{_format_value(value)}: {_explain_unknown(rules, key)}")
    for key in rules:
        if missing := _find_missing(config, key.removeprefix(prefix).split(".")):
            raise UserError(f"config.{prefix}{missing}: missing from this config; configs/base.py lists all settings")
    for key, value in leaves.items():
        if (rule := find_rule(rules, key)) is None:
            continue
        read = read_value(key, value, rule)
        if repr(read) != repr(value):
            *parents, leaf = key.removeprefix(prefix).split(".")
            set_value(functools.reduce(operator.getitem, parents, config), leaf, read)


def read_value(key: str, value: Any, rule: Rule) -> Any:
    """The value, converted by its rule. Raises `UserError` if it is not valid."""
    try:
        return rule.read(value)
    except (ValueError, OverflowError) as error:
        hint = f"; {error}" if str(error) else ""
        raise UserError(f"config.{key}{_format_value(value)}: must be {rule.text}{hint}") from None


def find_rule(rules: Mapping[str, Rule], key: str) -> Rule | None:
    """The rule of a key: its own, or that of the table it is in; None if there is none."""
    return rules.get(key) or next((rule for pattern, rule in rules.items() if _matches(pattern, key)), None)


def _matches(pattern: str, key: str) -> bool:
    parts, names = pattern.split("."), key.split(".")
    return len(parts) == len(names) and all(part in ("*", name) for part, name in zip(parts, names, strict=True))


def find_leaves(config: ml_collections.ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All keys and values, as in ("data.threads", 4); the value of an empty group is the group."""
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict) and len(value):
            yield from find_leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _is_group(rules: Mapping[str, Rule], key: str) -> bool:
    depth = key.count(".") + 1
    return any(_matches(".".join(pattern.split(".")[:depth]), key) for pattern in rules if pattern.count(".") >= depth)


def _explain_unknown(rules: Mapping[str, Rule], key: str) -> str:
    if _is_group(rules, key):
        return "must be a group of settings"
    parents = [".".join(key.split(".")[:depth]) for depth in range(1, key.count(".") + 1)]
    for parent in parents:
        if rule := find_rule(rules, parent):
            return f"config.{parent} is not a group; it must be {rule.text}"
    near = difflib.get_close_matches(key, [pattern for pattern in rules if "*" not in pattern], 1, cutoff=0.0)
    return f"no such setting{f'; did you mean config.{near[0]}?' if near else ''}"


def _find_missing(group: Any, parts: Sequence[str]) -> str:
    """The key of a rule that the config lacks; "" if it lacks none."""
    head, *rest = parts
    if not isinstance(group, ml_collections.ConfigDict):
        return ""  # a value instead of a group; it is refused elsewhere
    for name in list(group) if head == "*" else [head]:
        if name not in group:
            return ".".join([name, *rest]).removesuffix(".*")
        if rest and (missing := _find_missing(group[name], rest)):
            return f"{name}.{missing}"
    return ""


def set_value(group: ml_collections.ConfigDict, name: str, value: Any) -> None:
    """Sets a new or existing key to a value of any type; plain assignment refuses or converts other types."""
    with group.unlocked():
        if name in group:
            del group[name]
        group[name] = value


def _format_value(value: Any) -> str:
    text = repr(value).replace("\n", "")
    return f"={text if len(text) <= 80 else text[:77] + '...'}"
