"""Faces that know less than a system does: what every system must beat."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from slf_jax import cascade
from slf_jax.streams import generator
from tfrecords.reader import Clips, stack

MOST = 1000  # training faces that are looked at


def bicubic(faces: np.ndarray) -> np.ndarray:
    """What the guides of uint8 faces [B, 128, 128, 3] look like up-sampled."""
    guides = cascade.make_guide(cascade.to_float(jnp.asarray(faces)))
    return np.asarray(cascade.to_uint8(cascade.upsample(guides, faces.shape[1])))


def mean_face(clips: Clips) -> np.ndarray:
    """The mean of up to `MOST` faces, uint8 [128, 128, 3]."""
    return np.mean([clips[i]["face"] for i in _places(clips)], 0, dtype=np.float64).round().astype(np.uint8)


def same_gender(clips: Clips, genders: np.ndarray, seed: int) -> np.ndarray:
    """For each of genders [B] a random face of it, uint8 [B, 128, 128, 3]; any face where it is unknown."""
    rng = generator(seed, "same gender")
    pool = stack([clips[i] for i in _places(clips)])
    faces = []
    for gender in genders:
        places = np.flatnonzero((pool["gender"] == gender) & (gender >= 0))
        faces.append(pool["face"][rng.choice(places if len(places) else len(pool["gender"]))])
    return np.stack(faces)


def _places(clips: Clips) -> list[int]:
    return np.linspace(0, len(clips) - 1, min(MOST, len(clips))).astype(int).tolist()
