"""Face embeddings and estimates of age, gender and ethnicity, by DeepFace's networks or by eigenfaces."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image
from tqdm import tqdm

from slf_common import cli
from slf_common.errors import UserError
from slf_common.files import local_path
from tfrecords.reader import Clips, stack
from tfrecords.schema import LABELS

EMBEDDERS = {"eigenfaces": "", "vgg-face": "VGG-Face", "facenet512": "Facenet512", "arcface": "ArcFace"}
METRICS = {"eigenfaces": "cosine", "vgg-face": "l2", "facenet512": "cosine", "arcface": "cosine"}
ATTRIBUTES = ("gender", "ethnicity")
MAX_FACES = 4096  # training faces that eigenfaces are fitted on
COMPONENTS = 64
# OpenCV's cascade misses many faces that fill their picture. It finds three in ten of these in copies that are scaled
# by these factors and padded with their edge pixels, either as they are or mirrored.
RETRY_SCALES = {"opencv": (1.0, 0.75)}
ENVIRONMENT = {"DEEPFACE_BACKEND_ENGINE": "pytorch", "DEEPFACE_LOG_LEVEL": "40", "TF_CPP_MIN_LOG_LEVEL": "3"}
_SIDE = 64  # image side at which eigenfaces are fitted
ACTIONS = {"age": "age", "gender": "gender", "race": "ethnicity"}  # DeepFace's names: ours
# DeepFace's weight files; their extension depends on its engine.
WEIGHTS = {
    "VGG-Face": "vgg_face_weights", "Facenet512": "facenet512_weights", "ArcFace": "arcface_weights",
    "age": "age_model_weights", "gender": "gender_model_weights", "race": "race_model_single_batch",
}  # fmt: skip
EXTENSIONS = {"pytorch": ".pth", "onnx": ".onnx", "tensorflow": ".h5"}
_CLASSES = {"Woman": "female", "Man": "male"}  # DeepFace's names: ours


class NoNetwork(UserError):
    """DeepFace is not installed, or its weights are not available. (Weights that fail to load raise `UserError`.)"""


class FaceFeatures(NamedTuple):
    """Features of n pictures: embeddings [n, D], whether a face was found [n], and estimates [n] of age in years
    (NaN: no face) and of labels (-1: no face). Attributes without a model have no estimates: None, or no entry.
    """

    vectors: np.ndarray
    found: np.ndarray
    age: np.ndarray | None
    labels: dict[str, np.ndarray]


class FaceEmbedder(Protocol):
    """An embedder of faces. `name` and `metric` go into the report; `fingerprint` identifies its weights."""

    name: str
    metric: str
    fingerprint: str

    def __call__(self, faces: np.ndarray, progress: str = "") -> FaceFeatures:
        """The features of faces uint8 [n, 128, 128, 3]; `progress`: label of the progress bar, empty for none."""


def make_embedder(name: str, metric: str, detector: str, train: Clips | None) -> FaceEmbedder:
    """The embedder with this name; `train`: clips on whose faces eigenfaces are fitted. Raises `UserError`."""
    if name not in EMBEDDERS:
        raise UserError(f"--embedder {name}: must be one of: {', '.join(EMBEDDERS)}")
    metric = metric or METRICS[name]
    if name != "eigenfaces":
        check_detector(detector)
        return DeepFaceEmbedder(name, metric, detector)
    if train is None:
        raise UserError("--embedder eigenfaces: needs a train split to fit on, this dataset has none; choose another")
    return Eigenfaces(train, metric)


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
        indices = np.linspace(0, len(train) - 1, min(MAX_FACES, len(train))).astype(int)
        clips = stack([train[int(i)] for i in tqdm(indices, desc="eigenfaces", unit="face", leave=False)])
        self.name, self.metric = "eigenfaces", metric
        pixels = self._pixels(clips["face"])
        count = min(COMPONENTS, len(pixels) - 1)
        if count < 2:
            raise UserError(f"{train.directory}: eigenfaces need at least 3 training faces, not {len(pixels)}")
        self._pca = PCA(count, svd_solver="full").fit(pixels)
        self._scale = np.sqrt(self._pca.explained_variance_) + 1e-6
        self.fingerprint = hashlib.sha256(clips["face"].tobytes()).hexdigest()[:16]
        self._fit(self._embed(clips["face"]), clips)

    def __call__(self, faces: np.ndarray, progress: str = "") -> FaceFeatures:
        vectors = self._embed(faces)
        age = np.clip(self._age.predict(vectors), 0, 120) if self._age else None
        labels = {name: model.predict(vectors) for name, model in self._labels.items()}
        return FaceFeatures(vectors, np.ones(len(faces), bool), age, labels)

    def _embed(self, faces: np.ndarray) -> np.ndarray:
        return (self._pca.transform(self._pixels(faces)) / self._scale).astype(np.float32)

    def _fit(self, vectors: np.ndarray, clips: Mapping[str, np.ndarray]) -> None:
        """Fits linear models of the attributes that are known."""
        from sklearn.linear_model import LogisticRegression, Ridge

        known = np.isfinite(clips["age"])
        self._age = Ridge(1.0).fit(vectors[known], clips["age"][known]) if known.sum() > 1 else None
        self._labels = {}
        for name in ATTRIBUTES:
            known = clips[name] >= 0
            if len(set(clips[name][known].tolist())) > 1:
                self._labels[name] = LogisticRegression(max_iter=1000).fit(vectors[known], clips[name][known])

    @staticmethod
    def _pixels(faces: np.ndarray) -> np.ndarray:
        """Pixels [n, D] in [0, 1] inside an oval, which excludes the background, at `_SIDE` x `_SIDE`."""
        n, height, width, _ = faces.shape
        small = faces.reshape(n, _SIDE, height // _SIDE, _SIDE, width // _SIDE, 3).mean((2, 4), dtype=np.float32)
        down, across = np.mgrid[-1 : 1 : _SIDE * 1j, -1 : 1 : _SIDE * 1j]
        oval = (across / 0.62) ** 2 + (down / 0.78) ** 2 <= 1
        return small[:, oval].reshape(n, -1) / 255


def check_detector(name: str) -> None:
    """Raises `UserError` for a detector that the installed DeepFace does not have; without DeepFace, never."""
    try:
        from deepface.modules import modeling
    except ImportError:
        return
    known = ("skip", *modeling.AVAILABLE_MODELS["face_detector"])
    if name not in known:
        raise UserError(f"--detector {name}: must be one of: {', '.join(known)}")


def _padded_copies(face: np.ndarray, factors: Sequence[float]) -> Iterator[np.ndarray]:
    """Scaled, padded and mirrored copies of a picture uint8 [H, W, 3], for faces that fill it."""
    for factor in factors:
        height, width = (max(1, round(side * factor)) for side in face.shape[:2])
        small = np.asarray(Image.fromarray(face).resize((width, height), Image.Resampling.BOX))
        padded = np.pad(small, ((height // 2,) * 2, (width // 2,) * 2, (0, 0)), "edge")
        yield from (padded, np.ascontiguousarray(padded[:, ::-1]))


class DeepFaceEmbedder:
    """DeepFace's recognition and attribute networks. A picture in which its detector finds no face counts as a miss."""

    def __init__(self, name: str, metric: str, detector: str) -> None:
        self.name, self.metric, self._detector, self._model = name, metric, detector, EMBEDDERS[name]
        for key, value in ENVIRONMENT.items():
            os.environ.setdefault(key, value)
        try:
            self._folder = local_path(os.environ.get("DEEPFACE_HOME") or "~") / ".deepface" / "weights"
        except UserError as error:  # DeepFace would create a folder named ~
            raise NoNetwork(f"--embedder {name}, DeepFace: {error}") from None
        try:
            with cli.quiet():
                import deepface.DeepFace
        except ImportError as error:
            raise NoNetwork(f'--embedder {name} needs {error.name}: pip install -e ".[extract]"') from None
        self._deepface = deepface.DeepFace
        noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3)).astype(np.uint8)
        # The embedding of fixed noise identifies the weights.
        vector = np.array(self._represent(noise, "skip"))
        digest = hashlib.sha256(np.round(vector, 2).tobytes()).hexdigest()[:16]
        retries = f", looks {RETRY_SCALES[detector]}" if detector in RETRY_SCALES else ""
        self.fingerprint = f"{digest} {detector}{retries}"
        self._size = len(vector)
        self._actions = tuple(action for action in ACTIONS if self._works(action, noise))

    def __call__(self, faces: np.ndarray, progress: str = "") -> FaceFeatures:
        rows = [self._describe(face) for face in tqdm(faces, desc=progress, unit="face", disable=not progress)]
        found = np.array([row is not None for row in rows])
        vectors = np.array([row[0] if row else np.zeros(self._size) for row in rows], np.float32)
        estimates = [row[1] if row else {} for row in rows]
        age = np.array([each.get("age", np.nan) for each in estimates]) if "age" in self._actions else None
        labels = {
            name: np.array([each.get(name, -1) for each in estimates])
            for action, name in ACTIONS.items()
            if action in self._actions and name in ATTRIBUTES
        }
        return FaceFeatures(vectors, found, age, labels)

    def _works(self, action: str, face: np.ndarray) -> bool:
        """Whether an attribute can be estimated; if not, a note is printed and it is not measured."""
        try:
            with self._as_user_error(action):
                self._analyze(face, (action,), "skip")
        except NoNetwork as error:
            print(f"note: {ACTIONS[action]} is not measured ({error})", file=sys.stderr)
            return False
        return True

    def _analyze(self, face: np.ndarray, actions: tuple[str, ...], detector: str) -> dict:
        with cli.quiet():
            (found, *_) = self._deepface.analyze(
                face[..., ::-1], actions, enforce_detection=False, detector_backend=detector, silent=True
            )
        return found

    def _describe(self, face: np.ndarray) -> tuple[list[float], dict[str, float | int]] | None:
        """The embedding and the estimates; None if no face was found, not even in the padded copies."""
        pictures = chain([face], _padded_copies(face, RETRY_SCALES.get(self._detector, ())))
        represented = ((picture, self._represent(picture, self._detector)) for picture in pictures)
        picture, vector = next(((p, vector) for p, vector in represented if vector is not None), (face, None))
        if vector is None:
            return None
        found: dict = {}
        if self._actions:
            with self._as_user_error(*self._actions):
                found = self._analyze(picture, self._actions, self._detector)
        estimates: dict[str, float | int] = {}
        if "age" in found:
            estimates["age"] = float(found["age"])
        if "dominant_gender" in found:
            estimates["gender"] = LABELS["gender"].index(_CLASSES[found["dominant_gender"]])
        if "dominant_race" in found:
            estimates["ethnicity"] = LABELS["ethnicity"].index(found["dominant_race"])
        return vector, estimates

    def _represent(self, face: np.ndarray, detector: str) -> list[float] | None:
        """The embedding of the largest face; None if no face is found."""
        from deepface.modules.exceptions import FaceNotDetected

        with self._as_user_error(self._model), cli.quiet():
            try:
                (found,) = self._deepface.represent(
                    face[..., ::-1], model_name=self._model, detector_backend=detector, max_faces=1
                )
            except FaceNotDetected:
                return None
        return found["embedding"]

    @contextlib.contextmanager
    def _as_user_error(self, *networks: str) -> Iterator[None]:
        """Turns what DeepFace raises for these networks (weights missing or damaged, ...) into a `UserError`."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # each engine raises its own types
            line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            extension = EXTENSIONS.get(os.environ["DEEPFACE_BACKEND_ENGINE"], "")
            available = all((self._folder / f"{WEIGHTS[name]}{extension}").exists() for name in networks)
            raise (UserError if available else NoNetwork)(
                f"--embedder {self.name} --detector {self._detector}, DeepFace: {line}; put weights into "
                "$DEEPFACE_HOME/.deepface/weights, or use --embedder eigenfaces, which needs none"
            ) from error
