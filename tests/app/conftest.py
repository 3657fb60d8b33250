"""The system that comes with the repository, a voice and a picture."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import slf_jax

RATE = 16_000


@pytest.fixture(scope="session")
def system():
    return slf_jax.load()


@pytest.fixture(scope="session")
def voice(tmp_path_factory) -> Path:
    """Three seconds of a buzz with a changing pitch."""
    time = np.arange(3 * RATE) / RATE
    phase = 2 * np.pi * np.cumsum(130 + 20 * np.sin(5 * time)) / RATE
    sound = sum(np.sin(k * phase) / k for k in range(1, 20)) + np.random.default_rng(0).normal(0, 0.05, len(time))
    path = tmp_path_factory.mktemp("recordings") / "voice.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes((8000 * sound).astype(np.int16).tobytes())
    return path


@pytest.fixture(scope="session")
def picture(tmp_path_factory) -> Path:
    """A photograph of nobody: 8x8 patches of muted colour."""
    colours = np.random.default_rng(1).integers(70, 180, (8, 8, 3)).astype(np.uint8)
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    Image.fromarray(colours).resize((256, 256), Image.Resampling.BILINEAR).save(path)
    return path
