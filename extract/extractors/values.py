"""From the outputs of the extractors to the fields of a record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfrecords.schema import LANGUAGE_LOGPROBS

FLOAT16_MAX = float(np.finfo(np.float16).max)


def record_values(values: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns the fields of one clip's record for its constituents, float32 [rows, width].

    Constituents are float16, as they are stored; the language is the one with the highest log-probability.
    """
    fields = {name: storable(value) for name, value in values.items()}
    return {**_likeliest_language(fields), **{name: value.astype(np.float16) for name, value in fields.items()}}


def storable(values: np.ndarray) -> np.ndarray:
    """Sets rows of a constituent [..., rows, width] that float16 cannot represent, or that are not finite, to NaN."""
    fits = (np.abs(values) <= FLOAT16_MAX).all(-1, keepdims=True)
    return np.where(fits, values, np.nan)


def _likeliest_language(values: Mapping[str, np.ndarray]) -> dict[str, int]:
    scores = values.get(LANGUAGE_LOGPROBS.name)
    if scores is None or not np.isfinite(scores).all():
        return {}
    return {"language": int(scores.argmax())}
