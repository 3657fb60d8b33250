"""Controls: faces made from less information than a system has, which every system must beat."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import jax.numpy as jnp
import numpy as np

from slf_jax.cascade.images import make_thumbnail, to_float, to_uint8, upsample
from slf_jax.streams import generator
from tfrecords.reader import Clips, stack

MAX_FACES = 1000  # of the training split


def bicubic(faces: np.ndarray) -> np.ndarray:
    """The thumbnails of faces uint8 [B, 128, 128, 3], up-sampled."""
    thumbnails = make_thumbnail(to_float(jnp.asarray(faces)))
    return np.asarray(to_uint8(upsample(thumbnails, faces.shape[1])))


def mean_face(clips: Clips) -> np.ndarray:
    """The mean of up to `MAX_FACES` faces, uint8 [128, 128, 3]."""
    return np.mean([clips[i]["face"] for i in _indices(clips)], 0, dtype=np.float64).round().astype(np.uint8)


def same_gender(clips: Clips, genders: np.ndarray, seed: int) -> np.ndarray:
    """For each of genders [B] a random face of that gender, uint8 [B, 128, 128, 3]; any face where it is unknown."""
    rng = generator(seed, "same gender")
    pool = stack([clips[i] for i in _indices(clips)])
    faces = []
    for gender in genders:
        matching = np.flatnonzero((pool["gender"] == gender) & (gender >= 0))
        faces.append(pool["face"][rng.choice(matching if len(matching) else len(pool["gender"]))])
    return np.stack(faces)


def swap_people(batch: Mapping[str, np.ndarray], keys: Collection[str]) -> dict[str, np.ndarray]:
    """A batch in which everybody has the next person's values of `keys`."""
    return {key: np.roll(value, 1, 0) if key in keys else value for key, value in batch.items()}


def _indices(clips: Clips) -> list[int]:
    return np.linspace(0, len(clips) - 1, min(MAX_FACES, len(clips))).astype(int).tolist()
