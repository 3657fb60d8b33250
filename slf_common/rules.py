"""What the leaves of a config may hold: rules by key, and the check of a config against them.

A key is the path of a leaf, `train.steps`. In a rule's key `*` stands for any name: a table that may have more entries.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from slf_common.errors import UserError

MOST = 2**31 - 1  # steps, seeds and sizes are int32 on a device
FLOAT32 = (1.1754944e-38, 3.4028235e38)  # other magnitudes are 0 or infinite on a device


@dataclasses.dataclass(frozen=True)
class Rule:
    """What one leaf may hold.

    text: what follows "must be".
    read: gives the value in the setting's own type (1e5 as an int, 1 as a float). Raises `ValueError` where it does not
      fit, with a hint or without.
    """

    text: str
    read: Callable[[Any], Any]


def integer(least: int, most: int = MOST) -> Rule:
    """A whole number; 1e5 and 2.0 are whole."""

    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or value != value // 1:
            raise ValueError
        if not least <= value <= most:
            raise ValueError(f"at most {most}" if value > most else "")
        return int(value)

    bounds = f"of at least {least}" if most == MOST else f"from {least} to {most}"
    return Rule(f"a whole number {bounds}", read)


def real(
    least: float = -math.inf, most: float = math.inf, *, above: float = -math.inf, below: float = math.inf
) -> Rule:
    """A number that is finite, and not rounded to 0, in float32."""

    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise ValueError
        if not (least <= value <= most and above < value < below):
            raise ValueError
        if value and not FLOAT32[0] <= abs(value) <= FLOAT32[1]:
            raise ValueError("of a magnitude that float32 holds")
        return float(value)

    if math.isfinite(least) and math.isfinite(most):
        return Rule(f"a finite number from {least:g} to {most:g}", read)
    bounds = {"of at least": least, "above": above, "of at most": most, "below": below}
    told = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if math.isfinite(bound))
    return Rule(f"a finite number {told}".strip(), read)


def flag() -> Rule:
    def read(value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError
        return value

    return Rule("true or false", read)


def text(*, empty: bool = True) -> Rule:
    """Any string; not `empty`: one that says something."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or not (empty or value.strip()):
            raise ValueError
        return value

    return Rule("a text" if empty else "a text that is not empty", read)


def choice(options: Iterable[str]) -> Rule:
    options = tuple(options)

    def read(value: Any) -> str:
        if value not in options:
            near = difflib.get_close_matches(str(value).lower(), options, 1)
            raise ValueError(f"did you mean {near[0]!r}?" if near else "")
        return value

    return Rule(f"one of: {', '.join(option or repr(option) for option in options)}", read)


def each(rule: Rule, least: int = 0, most: int | None = None, *, distinct: Callable[[Any], Any] | None = None) -> Rule:
    """A tuple or list of `least` to `most` values that fit `rule`; no two alike in what `distinct` gives of them."""

    def read(value: Any) -> Sequence:
        if not isinstance(value, (tuple, list)) or len(value) < least or (most is not None and len(value) > most):
            raise ValueError
        values = [rule.read(one) for one in value]
        if distinct and len(set(map(distinct, values))) < len(values):
            raise ValueError("one is given twice")
        return type(value)(values)

    size = "" if not least and most is None else f" of {least}" if most == least else f" of at least {least}"
    size = f" of {least} to {most}" if most is not None and most != least else size
    return Rule(f"a tuple{size}, each entry {rule.text}{', none twice' if distinct else ''}", read)


def either(*rules: Rule) -> Rule:
    """What fits one of the rules."""

    def read(value: Any) -> Any:
        for rule in rules:
            try:
                return rule.read(value)
            except ValueError:
                continue
        raise ValueError

    return Rule(", or ".join(rule.text for rule in rules), read)


def constant(value: float) -> Rule:
    """One number, such as a 0 that turns something off."""

    def read(given: Any) -> float:
        if isinstance(given, bool) or given != value:
            raise ValueError
        return value

    return Rule(f"{value:g}", read)


def check(
    config: ml_collections.ConfigDict, rules: Mapping[str, Rule], *, root: str = "", ours: Callable[[str], bool] = bool
) -> None:
    """Checks every leaf of a config, and puts numbers into their own type: 1e5 becomes an int where one belongs.

    Args:
      root: the key of `config` where it is a group of a larger one.
      ours: tells of a key whether it is to be checked.

    Raises `UserError` naming the first key that is unknown, is missing, or has a value that does not fit its rule.
    """
    prefix = f"{root}." if root else ""
    rules = {key: rule for key, rule in rules.items() if ours(key)}
    leaves = {key: value for key, value in find_leaves(config, prefix) if ours(key)}
    for key, value in list(leaves.items()):
        if _is_group(rules, key) and isinstance(value, ml_collections.ConfigDict):
            del leaves[key]  # a table without entries
        elif find_rule(rules, key) is None:
            raise UserError(f"config.{key}{_spell(value)}: {_unknown(rules, key)}")
    for key in rules:
        if missing := _missing(config, key.removeprefix(prefix).split(".")):
            raise UserError(
                f"config.{prefix}{missing}: missing from this config; configs/base.py has every setting to start from"
            )
    for key, value in leaves.items():
        read = read_value(key, value, find_rule(rules, key))
        if repr(read) != repr(value):
            _set(config, key.removeprefix(prefix).split("."), read)


def read_value(key: str, value: Any, rule: Rule) -> Any:
    """The value as the rule reads it; raises `UserError` where it does not fit."""
    try:
        return rule.read(value)
    except (ValueError, OverflowError) as error:
        hint = f"; {error}" if str(error) else ""
        raise UserError(f"config.{key}{_spell(value)}: must be {rule.text}{hint}") from None


def find_rule(rules: Mapping[str, Rule], key: str) -> Rule | None:
    """The rule of a key: its own, or that of the table that it stands in."""
    return rules.get(key) or next((rule for pattern, rule in rules.items() if _fits(pattern, key)), None)


def _fits(pattern: str, key: str) -> bool:
    parts, names = pattern.split("."), key.split(".")
    return len(parts) == len(names) and all(part in ("*", name) for part, name in zip(parts, names, strict=True))


def find_leaves(config: ml_collections.ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Keys and values of all settings, ("train.steps", ...); an empty group is its own value."""
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict) and len(value):
            yield from find_leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _is_group(rules: Mapping[str, Rule], key: str) -> bool:
    depth = key.count(".") + 1
    return any(_fits(".".join(pattern.split(".")[:depth]), key) for pattern in rules if pattern.count(".") >= depth)


def _unknown(rules: Mapping[str, Rule], key: str) -> str:
    if _is_group(rules, key):
        return "must be a group of settings"
    parents = [".".join(key.split(".")[:depth]) for depth in range(1, key.count(".") + 1)]
    for parent in parents:
        if rule := find_rule(rules, parent):
            return f"config.{parent} is no group; it must be {rule.text}"
    near = difflib.get_close_matches(key, [pattern for pattern in rules if "*" not in pattern], 1, cutoff=0.0)
    return f"no such setting{f'; did you mean config.{near[0]}?' if near else ''}"


def _missing(group: Any, parts: Sequence[str]) -> str:
    """The key that a rule expects and a config lacks; "" if there is none."""
    head, *rest = parts
    if not isinstance(group, ml_collections.ConfigDict):
        return ""  # a leaf in a group's place, which is refused as such
    for name in list(group) if head == "*" else [head]:
        if name not in group:
            return ".".join([name, *rest]).removesuffix(".*")
        if rest and (missing := _missing(group[name], rest)):
            return f"{name}.{missing}"
    return ""


def _set(config: ml_collections.ConfigDict, names: Sequence[str], value: Any) -> None:
    *parents, leaf = names
    for name in parents:
        config = config[name]
    with config.unlocked():
        del config[leaf]  # a float's place would make a float of an int again
        config[leaf] = value


def _spell(value: Any) -> str:
    told = repr(value).replace("\n", "")
    return f"={told if len(told) <= 80 else told[:77] + '...'}"
