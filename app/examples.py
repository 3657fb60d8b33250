"""Examples for the page: drawn people of `extract.talkers` whom no training data contains."""

from __future__ import annotations

import dataclasses
import wave
from pathlib import Path

import numpy as np
from PIL import Image

SEED, PEOPLE, SECONDS = 1, (0, 8, 2, 4), 6.0  # seed 0 is the population of the demo; the people differ visibly


@dataclasses.dataclass(frozen=True)
class Example:
    """A drawn person: files of the voice and the face, and the attributes."""

    voice: Path
    picture: Path
    age: float
    gender: str
    ethnicity: str


def write_examples(folder: Path, count: int = len(PEOPLE)) -> list[Example]:
    """Draws people and writes their voices (WAV) and faces (PNG) to a folder.

    Needs the extra `demo`; returns an empty list without it.
    """
    try:
        from extract.talkers import face, voice
        from extract.talkers.identity import draw_identity
        from extract.talkers.scene import draw_scene
    except ModuleNotFoundError:
        return []
    folder.mkdir(exist_ok=True)
    examples = []
    for number, index in enumerate(PEOPLE[:count], 1):
        person, rng = draw_identity(SEED, index), np.random.default_rng([SEED, index])
        files = folder / f"person{number}.wav", folder / f"person{number}.png"
        _write_wav(files[0], voice.synthesize(person, SECONDS, rng), voice.RATE)
        Image.fromarray(face.render(person, draw_scene(rng), [0.2])[0]).save(files[1])
        examples.append(Example(*files, round(person.age), person.gender, person.ethnicity))
    return examples


def _write_wav(path: Path, sound: np.ndarray, rate: int) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.round(sound * 32767).astype("<i2").tobytes())
