"""Controls: faces made from less information than a system has, which it should outperform."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import jax.numpy as jnp
import numpy as np

from slf_jax.cascade.images import make_thumbnail, to_float, to_uint8, upsample
from slf_jax.streams import generator
from tfrecords.reader import Clips, stack

MAX_FACES = 1000  # training faces to use


def bicubic(faces: np.ndarray) -> np.ndarray:
    """The thumbnails of faces uint8 [B, 128, 128, 3], up-sampled bicubically to their size."""
    thumbnails = make_thumbnail(to_float(jnp.asarray(faces)))
    return np.asarray(to_uint8(upsample(thumbnails, faces.shape[1])))


def mean_face(clips: Clips) -> np.ndarray:
    """The mean of up to `MAX_FACES` faces, uint8 [128, 128, 3]."""
    faces = np.stack([clips.read(i, ("face",))["face"] for i in _indices(clips)])
    return faces.mean(0, dtype=np.float64).round().astype(np.uint8)


def same_gender(clips: Clips, genders: np.ndarray, seed: int) -> np.ndarray:
    """A random face of the same gender for each of genders [B], uint8 [B, 128, 128, 3]; of any gender if unknown."""
    rng = generator(seed, "same gender")
    pool = stack([clips.read(i, ("face", "gender")) for i in _indices(clips)])
    faces = []
    for gender in genders:
        matching = np.flatnonzero((pool["gender"] == gender) & (gender >= 0))
        faces.append(pool["face"][rng.choice(matching if len(matching) else len(pool["gender"]))])
    return np.stack(faces)


def swap_people(batch: Mapping[str, np.ndarray], keys: Collection[str]) -> dict[str, np.ndarray]:
    """A batch in which every person has another's values of `keys`: those of the one before."""
    return {key: np.roll(value, 1, 0) if key in keys else value for key, value in batch.items()}


def _indices(clips: Clips) -> list[int]:
    """Indices of up to `MAX_FACES` clips, evenly spaced."""
    return np.linspace(0, len(clips) - 1, min(MAX_FACES, len(clips))).astype(int).tolist()
