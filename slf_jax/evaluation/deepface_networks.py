"""Embeddings and attributes by DeepFace's networks."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterator
from itertools import chain

import numpy as np
from tqdm import tqdm

from slf_common import cli
from slf_common.errors import UserError
from slf_common.files import local_path
from slf_common.packaged_weights import provide_to_deepface
from slf_jax.evaluation.features import ATTRIBUTES, FaceFeatures, NoNetwork, padded_copies
from tfrecords.schema import LABELS

NETWORKS = {"vgg-face": "VGG-Face", "facenet512": "Facenet512", "arcface": "ArcFace"}  # our names: DeepFace's
DETECTOR = "opencv"  # the paper's
# OpenCV's cascade misses many faces that fill their picture. It finds three in ten of these in copies that are scaled
# by these factors and padded with their edge pixels, either as they are or mirrored.
RETRY_SCALES = {"opencv": (1.0, 0.75)}
ENVIRONMENT = {"DEEPFACE_BACKEND_ENGINE": "pytorch", "DEEPFACE_LOG_LEVEL": "40", "TF_CPP_MIN_LOG_LEVEL": "3"}
ACTIONS = {"age": "age", "gender": "gender", "race": "ethnicity"}  # DeepFace's names: ours
# DeepFace's weight files; their extension depends on its engine.
WEIGHTS = {
    "VGG-Face": "vgg_face_weights", "Facenet512": "facenet512_weights", "ArcFace": "arcface_weights",
    "age": "age_model_weights", "gender": "gender_model_weights", "race": "race_model_single_batch",
}  # fmt: skip
EXTENSIONS = {"pytorch": ".pth", "onnx": ".onnx", "tensorflow": ".h5"}
_CLASSES = {"Woman": "female", "Man": "male"}  # DeepFace's names: ours


def check_detector(name: str) -> None:
    """Raises `UserError` for a detector that the installed DeepFace does not have; without DeepFace, never."""
    try:
        from deepface.modules import modeling
    except ImportError:
        return
    known = ("skip", *modeling.AVAILABLE_MODELS["face_detector"])
    if name not in known:
        raise UserError(f"--detector {name}: must be one of: {', '.join(known)}")


class DeepFaceEmbedder:
    """DeepFace's recognition and attribute networks. A picture in which its detector finds no face counts as a miss."""

    def __init__(self, name: str, metric: str, detector: str) -> None:
        check_detector(detector)
        self.name, self.metric, self._detector, self._model = name, metric, detector, NETWORKS[name]
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
        provide_to_deepface()
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
        pictures = chain([face], padded_copies(face, RETRY_SCALES.get(self._detector, ())))
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
                "$DEEPFACE_HOME/.deepface/weights, or use --embedder dlib or --embedder eigenfaces, which need none"
            ) from error
