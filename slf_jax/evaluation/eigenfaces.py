"""Eigenfaces: an embedder of faces that needs no network."""

from __future__ import annotations

import hashlib

import numpy as np

from slf_common.errors import UserError
from slf_jax.evaluation.features import FaceFeatures, LinearEstimates, spread
from tfrecords.reader import Clips

MAX_FACES = 4096  # training faces that eigenfaces are fitted on
COMPONENTS = 64
_SIDE = 64  # image side at which eigenfaces are fitted


class Eigenfaces:
    """Whitened principal components of the training faces inside an oval, and linear estimates from them.

    Replaces a face network where no weights are available. It compares pixels: it measures whether two pictures look
    alike, not whether they show the same person. It finds a face in any picture.
    """

    def __init__(self, train: Clips, metric: str = "cosine") -> None:
        try:
            from sklearn.decomposition import PCA
        except ImportError:
            raise UserError('eigenfaces need scikit-learn: pip install -e ".[evaluate]"') from None
        clips = spread(train, MAX_FACES)
        self.name, self.metric = "eigenfaces", metric
        pixels = self._pixels(clips["face"])
        count = min(COMPONENTS, len(pixels) - 1)
        if count < 2:
            raise UserError(f"{train.directory}: eigenfaces need at least 3 training faces, not {len(pixels)}")
        self._pca = PCA(count, svd_solver="full").fit(pixels)
        self._scale = np.sqrt(self._pca.explained_variance_) + 1e-6
        self.fingerprint = hashlib.sha256(clips["face"].tobytes()).hexdigest()[:16]
        self._estimates = LinearEstimates(self._embed(clips["face"]), clips)

    def __call__(self, faces: np.ndarray, progress: str = "") -> FaceFeatures:
        vectors, found = self._embed(faces), np.ones(len(faces), bool)
        return FaceFeatures(vectors, found, *self._estimates(vectors, found))

    def _embed(self, faces: np.ndarray) -> np.ndarray:
        return (self._pca.transform(self._pixels(faces)) / self._scale).astype(np.float32)

    @staticmethod
    def _pixels(faces: np.ndarray) -> np.ndarray:
        """Pixels [n, D] in [0, 1] inside an oval, which excludes the background, at `_SIDE` x `_SIDE`."""
        n, height, width, _ = faces.shape
        small = faces.reshape(n, _SIDE, height // _SIDE, _SIDE, width // _SIDE, 3).mean((2, 4), dtype=np.float32)
        down, across = np.mgrid[-1 : 1 : _SIDE * 1j, -1 : 1 : _SIDE * 1j]
        oval = (across / 0.62) ** 2 + (down / 0.78) ** 2 <= 1
        return small[:, oval].reshape(n, -1) / 255
