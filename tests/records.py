"""Clips of random numbers, for tests that need no media."""

from __future__ import annotations

import numpy as np


def make_clip(number: int, split: str = "train") -> dict:
    """A clip of random numbers that depend only on its number and split."""
    rng = np.random.default_rng([number, *split.encode()])
    coarse = rng.integers(40, 216, (8, 8, 3)).repeat(16, 0).repeat(16, 1)
    return {
        "clip_id": f"{split}{number}/00000/00001",
        "speaker_id": f"{split}{number}",
        "face": (coarse + rng.integers(-30, 30, coarse.shape)).astype(np.uint8),
        "age": 20.0 + number,
        "gender": number % 2,
        "ethnicity": number % 6,
        "pyaudioanalysis": rng.normal(3, 2, (79, 68)),
        "mel": rng.normal(-4, 1, (111, 768)),
    }
