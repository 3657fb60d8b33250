"""Embeddings by dlib's face network, whose weights a package ships."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from tqdm import tqdm

from slf_common.packaged_weights import find_packaged
from slf_jax.evaluation.features import FaceFeatures, LinearEstimates, NoNetwork, spread
from tfrecords.reader import Clips

NETWORK, LANDMARKS = "dlib_face_recognition_resnet_model_v1.dat", "shape_predictor_5_face_landmarks.dat"
DETECTORS = ("dlib", "skip")
# Lowest score of a face. In real faces of 128x128 pixels blurred to 20x20, dlib's default of 0 finds 76 %, this 92 %;
# those in between are recognised nearly as often. It also finds a face in 1 % of pictures without one.
MIN_SCORE = -0.6
# A face is looked for until it is found: in the picture, padded by a share of its side, and that doubled in size.
ATTEMPTS = ((0.0, 0), (0.125, 0), (0.125, 1))
SIZE, MARGIN = 150, 0.25  # of the aligned face that the network takes
BATCH = 16
FITTED = 400  # training faces on which attributes are fitted


class DlibEmbedder:
    """dlib's residual network (King 2017): 128 values, compared by Euclidean distance; the same person below 0.6.

    Faces are found by dlib's detector (HOG) and aligned by five landmarks, as for its training; "skip" takes the whole
    picture for the face. Age, gender and ethnicity are read from the embeddings by linear models fitted to the faces
    and labels of `train`. Raises `NoNetwork`.
    """

    def __init__(self, metric: str = "l2", detector: str = "dlib", train: Clips | None = None) -> None:
        if detector not in DETECTORS:
            raise NoNetwork(f"--embedder dlib --detector {detector}: must be one of: {', '.join(DETECTORS)}")
        paths = [find_packaged(name) for name in (NETWORK, LANDMARKS)]
        try:
            import dlib
        except ImportError:
            paths.append(None)
        if None in paths:
            raise NoNetwork('--embedder dlib needs dlib and its weights: pip install -e ".[evaluate]"')
        network, landmarks = (Path(str(path)) for path in paths)
        self.name, self.metric, self._detector, self._train = "dlib", metric, detector, train
        self._chip, self._rectangle = dlib.get_face_chip, dlib.rectangle
        self._find = dlib.get_frontal_face_detector()
        self._landmarks = dlib.shape_predictor(str(landmarks))
        self._network = dlib.face_recognition_model_v1(str(network))
        digest = hashlib.sha256(network.read_bytes()).hexdigest()[:16]
        self.fingerprint = f"{digest} {detector}, at least {MIN_SCORE}, {ATTEMPTS}"
        self._estimates: LinearEstimates | None = None
        self._mean, self._deviation = np.zeros(128), np.ones(128)

    def __call__(self, faces: np.ndarray, progress: str = "") -> FaceFeatures:
        if self._train is not None and self._estimates is None:
            self._fit(self._train)
        vectors, found = self.embed(faces, progress)
        if self._estimates is None:
            return FaceFeatures(vectors, found, None, {})
        return FaceFeatures(vectors, found, *self._estimates((vectors - self._mean) / self._deviation, found))

    def embed(self, faces: np.ndarray, progress: str = "") -> tuple[np.ndarray, np.ndarray]:
        """Embeddings [n, 128], 0 where no face was found, and whether one was [n], of faces uint8 [n, H, W, 3]."""
        vectors, found = np.zeros((len(faces), 128), np.float32), np.zeros(len(faces), bool)
        with tqdm(total=len(faces), desc=progress, unit="face", disable=not progress) as bar:
            for first in range(0, len(faces), BATCH):
                chips = [self._align(face) for face in faces[first : first + BATCH]]
                has = np.array([chip is not None for chip in chips])
                if has.any():
                    batch = [chip for chip in chips if chip is not None]
                    vectors[first : first + len(has)][has] = np.array(self._network.compute_face_descriptor(batch))
                found[first : first + len(has)] = has
                bar.update(len(has))
        return vectors, found

    def _align(self, face: np.ndarray) -> np.ndarray | None:
        """The aligned face [150, 150, 3] of the best detection; None if there is none."""
        if self._detector == "skip":
            height, width = face.shape[:2]
            return self._chip(face, self._landmarks(face, self._rectangle(0, 0, width, height)), SIZE, MARGIN)
        for share, doublings in ATTEMPTS:
            border = [(round(side * share),) * 2 for side in face.shape[:2]] + [(0, 0)]
            picture = np.ascontiguousarray(np.pad(face, border, "edge"))
            boxes, scores, _ = self._find.run(picture, doublings, MIN_SCORE)
            if boxes:
                return self._chip(picture, self._landmarks(picture, boxes[int(np.argmax(scores))]), SIZE, MARGIN)
        return None

    def _fit(self, train: Clips) -> None:
        """Fits the estimates of attributes, if the training clips have any labels."""
        clips = spread(train, FITTED)
        if not (np.isfinite(clips["age"]).any() or (clips["gender"] >= 0).any() or (clips["ethnicity"] >= 0).any()):
            self._train = None
            return
        vectors, found = self.embed(clips["face"], "faces with known attributes")
        vectors, clips = vectors[found], {key: values[found] for key, values in clips.items()}
        self._mean, self._deviation = vectors.mean(0), vectors.std(0) + 1e-6
        self._estimates = LinearEstimates((vectors - self._mean) / self._deviation, clips)
