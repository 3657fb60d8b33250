"""Faces to embeddings, and to guesses at age, gender and ethnicity: DeepFace's networks, or eigenfaces."""

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
MOST_FACES = 4096  # of the training split, that eigenfaces are fitted on
COMPONENTS = 64
# OpenCV's cascade misses many faces that fill their picture; in copies smaller by these factors, upright and in mirror
# image, with their edges drawn out, it finds three in ten of them.
SECOND_LOOKS = {"opencv": (1.0, 0.75)}
ENVIRONMENT = {"DEEPFACE_BACKEND_ENGINE": "pytorch", "DEEPFACE_LOG_LEVEL": "40", "TF_CPP_MIN_LOG_LEVEL": "3"}
_SIDE = 64  # pixels that eigenfaces are fitted at
ACTIONS = {"age": "age", "gender": "gender", "race": "ethnicity"}  # DeepFace's words
# The files that DeepFace keeps these in, with the ending of its engine.
WEIGHTS = {
    "VGG-Face": "vgg_face_weights", "Facenet512": "facenet512_weights", "ArcFace": "arcface_weights",
    "age": "age_model_weights", "gender": "gender_model_weights", "race": "race_model_single_batch",
}  # fmt: skip
ENDINGS = {"pytorch": ".pth", "onnx": ".onnx", "tensorflow": ".h5"}
_CLASSES = {"Woman": "female", "Man": "male"}  # as DeepFace spells them


class NoNetwork(UserError):
    """DeepFace is not installed, or has no weights here. Weights that are here and do not load are another error."""


class FaceFeatures(NamedTuple):
    """What was found in n faces: embeddings [n, D], whether a face was found [n], and guesses [n] of age in years
    (NaN: no face) and of labels (-1: no face). What could be guessed of nobody, for want of a model, is not there.
    """

    vectors: np.ndarray
    found: np.ndarray
    age: np.ndarray | None
    labels: dict[str, np.ndarray]


class FaceEmbedder(Protocol):
    """`name` and `metric` go into the report, `fingerprint` tells one set of weights from another."""

    name: str
    metric: str
    fingerprint: str

    def __call__(self, faces: np.ndarray, progress: str = "") -> FaceFeatures:
        """Faces uint8 [n, 128, 128, 3] to what is found in them."""


def make_embedder(name: str, metric: str, detector: str, train: Clips | None) -> FaceEmbedder:
    """The embedder of that name; `train`: faces that eigenfaces are fitted on. Raises `UserError`."""
    if name not in EMBEDDERS:
        raise UserError(f"--embedder {name} is none of: {', '.join(EMBEDDERS)}")
    metric = metric or METRICS[name]
    if name != "eigenfaces":
        check_detector(detector)
        return DeepFaceEmbedder(name, metric, detector)
    if train is None:
        raise UserError("eigenfaces are fitted on training faces: this dataset has no train split; see --embedder")
    return Eigenfaces(train, metric)


class Eigenfaces:
    """Whitened principal components of the training faces inside an oval, and linear guesses from them.

    What stands in for a face network where no weights are at hand. It compares pixels, so it shows whether faces
    look alike, not whether people would take them for one person. It finds a face in any picture.
    """

    def __init__(self, train: Clips, metric: str = "cosine") -> None:
        try:
            from sklearn.decomposition import PCA
        except ImportError:
            raise UserError('eigenfaces need scikit-learn: pip install -e ".[evaluate]"') from None
        places = np.linspace(0, len(train) - 1, min(MOST_FACES, len(train))).astype(int)
        clips = stack([train[int(i)] for i in tqdm(places, desc="eigenfaces", unit="face", leave=False)])
        self.name, self.metric = "eigenfaces", metric
        pixels = self._pixels(clips["face"])
        count = min(COMPONENTS, len(pixels) - 1)
        if count < 2:
            raise UserError(f"{train.directory}: eigenfaces of {len(pixels)} training faces; 3 are the least")
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
        """Linear guesses at the attributes that are known."""
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
        """The pixels [n, D] in [0, 1] of an oval that leaves the background out, at `_SIDE` x `_SIDE`."""
        n, height, width, _ = faces.shape
        small = faces.reshape(n, _SIDE, height // _SIDE, _SIDE, width // _SIDE, 3).mean((2, 4), dtype=np.float32)
        down, across = np.mgrid[-1 : 1 : _SIDE * 1j, -1 : 1 : _SIDE * 1j]
        oval = (across / 0.62) ** 2 + (down / 0.78) ** 2 <= 1
        return small[:, oval].reshape(n, -1) / 255


def check_detector(name: str) -> None:
    """Raises `UserError` for a detector that the installed DeepFace does not have; without DeepFace, for none."""
    try:
        from deepface.modules import modeling
    except ImportError:
        return
    known = ("skip", *modeling.AVAILABLE_MODELS["face_detector"])
    if name not in known:
        raise UserError(f"--detector {name}: must be one of: {', '.join(known)}")


def _second_looks(face: np.ndarray, factors: Sequence[float]) -> Iterator[np.ndarray]:
    """Copies of a picture uint8 [H, W, 3] in which a detector may find a face that fills it."""
    for factor in factors:
        size = tuple(max(1, round(side * factor)) for side in face.shape[1::-1])
        small = np.asarray(Image.fromarray(face).resize(size, Image.Resampling.BOX))
        wide = np.pad(small, ((size[1] // 2,) * 2, (size[0] // 2,) * 2, (0, 0)), "edge")
        yield from (wide, np.ascontiguousarray(wide[:, ::-1]))


class DeepFaceEmbedder:
    """DeepFace's recognition and attribute networks. A picture in which its detector finds no face is a miss."""

    def __init__(self, name: str, metric: str, detector: str) -> None:
        self.name, self.metric, self._detector, self._model = name, metric, detector, EMBEDDERS[name]
        for key, value in ENVIRONMENT.items():
            os.environ.setdefault(key, value)
        try:
            self._folder = local_path(os.environ.get("DEEPFACE_HOME") or "~") / ".deepface" / "weights"
        except UserError as error:  # DeepFace would make a folder named ~
            raise NoNetwork(f"--embedder {name}, DeepFace: {error}") from None
        try:
            with cli.quiet():
                import deepface.DeepFace
        except ImportError as error:
            raise NoNetwork(f'--embedder {name} needs {error.name}: pip install -e ".[extract]"') from None
        self._deepface = deepface.DeepFace
        noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3)).astype(np.uint8)
        vector = np.array(self._represent(noise, "skip"))
        digest = hashlib.sha256(np.round(vector, 2).tobytes()).hexdigest()[:16]  # other weights, other vector
        looks = f", looks {SECOND_LOOKS[detector]}" if detector in SECOND_LOOKS else ""
        self.fingerprint = f"{digest} {detector}{looks}"
        self._size = len(vector)
        self._actions = tuple(action for action in ACTIONS if self._works(action, noise))

    def __call__(self, faces: np.ndarray, progress: str = "") -> FaceFeatures:
        rows = [self._describe(face) for face in tqdm(faces, desc=progress, unit="face", disable=not progress)]
        found = np.array([row is not None for row in rows])
        vectors = np.array([row[0] if row else np.zeros(self._size) for row in rows], np.float32)
        guesses = [row[1] if row else {} for row in rows]
        age = np.array([guess.get("age", np.nan) for guess in guesses]) if "age" in self._actions else None
        labels = {
            name: np.array([guess.get(name, -1) for guess in guesses])
            for action, name in ACTIONS.items()
            if action in self._actions and name in ATTRIBUTES
        }
        return FaceFeatures(vectors, found, age, labels)

    def _works(self, action: str, face: np.ndarray) -> bool:
        """Whether an attribute can be guessed; where it cannot, recall is measured all the same."""
        try:
            with self._explained(action):
                self._analyze(face, (action,), "skip")
        except NoNetwork as error:
            print(f"note: {ACTIONS[action]} is not measured ({error})", file=sys.stderr)
            return False
        return True

    def _analyze(self, face: np.ndarray, actions: tuple[str, ...], detector: str) -> dict:
        with cli.quiet():
            (guess, *_) = self._deepface.analyze(
                face[..., ::-1], actions, enforce_detection=False, detector_backend=detector, silent=True
            )
        return guess

    def _describe(self, face: np.ndarray) -> tuple[list[float], dict[str, float | int]] | None:
        """The embedding and the guesses; None where no face was found, in second looks either."""
        looks = chain([face], _second_looks(face, SECOND_LOOKS.get(self._detector, ())))
        represented = ((look, self._represent(look, self._detector)) for look in looks)
        look, vector = next(((look, vector) for look, vector in represented if vector is not None), (face, None))
        if vector is None:
            return None
        said, guess = {}, {}
        if self._actions:
            with self._explained(*self._actions):
                said = self._analyze(look, self._actions, self._detector)
        if "age" in said:
            guess["age"] = float(said["age"])
        if "dominant_gender" in said:
            guess["gender"] = LABELS["gender"].index(_CLASSES[said["dominant_gender"]])
        if "dominant_race" in said:
            guess["ethnicity"] = LABELS["ethnicity"].index(said["dominant_race"])
        return vector, guess

    def _represent(self, face: np.ndarray, detector: str) -> list[float] | None:
        """The embedding of the largest face, None where there is none."""
        from deepface.modules.exceptions import FaceNotDetected

        with self._explained(self._model), cli.quiet():
            try:
                (found,) = self._deepface.represent(
                    face[..., ::-1], model_name=self._model, detector_backend=detector, max_faces=1
                )
            except FaceNotDetected:
                return None
        return found["embedding"]

    @contextlib.contextmanager
    def _explained(self, *networks: str):
        """What DeepFace raises (no weights, damaged ones, an unknown detector) while it uses these, as one line."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # each engine has its own
            line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            ending = ENDINGS.get(os.environ["DEEPFACE_BACKEND_ENGINE"], "")
            here = all((self._folder / f"{WEIGHTS[name]}{ending}").exists() for name in networks)
            raise (UserError if here else NoNetwork)(
                f"--embedder {self.name} --detector {self._detector}, DeepFace: {line}; weights belong in "
                "$DEEPFACE_HOME/.deepface/weights, or compare without any: --embedder eigenfaces"
            ) from error
