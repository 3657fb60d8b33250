"""Extractors: each turns the sound of clips into one constituent, and lives in its own file with its framework."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from tfrecords.cli import UserError
from tfrecords.schema import Constituent


class Extractor(Protocol):
    """Computes one constituent.

    Making one is cheap: what is heavy waits for the first call, so that a plan can be made without it.
    """

    constituent: Constituent

    def __call__(self, waves: np.ndarray) -> np.ndarray:
        """Clips of 24 s at 16 kHz, float32 [clips, 384000], to float32 [clips, rows, width].

        Each clip's result depends on that clip alone. What cannot be computed is NaN.
        """
        ...


# Name -> module, which has `load() -> Extractor`, and the extra that installs what it needs.
MODULES = {
    "pyaudioanalysis": ("extract.extractors.pyaudioanalysis", "demo"),
    "mel": ("extract.extractors.mel", "demo"),
}


def load(names: Sequence[str]) -> list[Extractor]:
    """The extractors of those names, in that order.

    Raises `UserError` for an unknown name, a name given twice, or a package that is not installed.
    """
    if not names:
        raise UserError(f"config.extract.extractors is empty; choose from: {', '.join(MODULES)}")
    if len(set(names)) < len(names):
        raise UserError(f"config.extract.extractors: a name stands there twice: {', '.join(names)}")
    return [_load(name) for name in names]


def _load(name: str) -> Extractor:
    if name not in MODULES:
        raise UserError(f"config.extract.extractors: no extractor {name!r}; choose from: {', '.join(MODULES)}")
    module, extra = MODULES[name]
    try:
        return importlib.import_module(module).load()
    except ModuleNotFoundError as error:
        raise UserError(f'extractor {name!r} needs the package {error.name}: pip install -e ".[{extra}]"') from None
