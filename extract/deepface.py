"""DeepFace: its face detectors, and its models of age, gender and ethnicity, on the engine the config names.

DeepFace keeps its weights in `$DEEPFACE_HOME/.deepface/weights` and downloads what is missing there.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

from extract.frameworks import digest_file, quiet
from slf_common.errors import UserError
from slf_common.files import local_path
from tfrecords.schema import LABELS

DETECTORS = ("retinaface", "opencv", "mtcnn")
ENGINES = ("pytorch", "onnx", "tensorflow")
# Our names -> DeepFace's models, and the packages' own order of classes in our spelling.
MODELS = {"age": "Age", "gender": "Gender", "ethnicity": "Race"}
CLASSES = {"gender": ("female", "male"), "ethnicity": LABELS["ethnicity"]}
BATCH = 32  # faces in one forward pass
INPUT = (224, 224)


def start(settings: Mapping) -> None:
    """Imports DeepFace on the engine of `config.extract.deepface`; once in a process. Raises `UserError`."""
    home = settings["home"] or os.environ.get("DEEPFACE_HOME") or "~"  # which DeepFace itself would take for a name
    os.environ["DEEPFACE_HOME"] = str(local_path(home).absolute())
    os.environ["DEEPFACE_BACKEND_ENGINE"] = settings["engine"]
    try:
        with quiet():
            from deepface.commons import backend_utils, folder_utils

            running = backend_utils.get_backend_engine()
            folder_utils.initialize_folder()
    except ModuleNotFoundError as error:
        raise UserError(f'faces need the package {error.name}: pip install -e ".[extract]"') from error
    except (ValueError, OSError) as error:
        raise UserError(f"config.extract.deepface: {_first_line(error)}") from error
    if running != settings["engine"]:
        raise UserError(f"DeepFace runs on {running} in this process already, not on {settings['engine']}")


class Detector:
    """Finds the largest face of a frame, with one of DeepFace's detectors. Make it after `start`."""

    def __init__(self, name: str) -> None:
        self.name = name
        _build("face_detector", name)

    def __call__(self, frame: np.ndarray) -> tuple[tuple[float, float, float, float], np.ndarray] | None:
        """A frame uint8 RGB [H, W, 3] to the face's box (left, top, right, bottom) in pixels and the face, turned
        upright, float RGB [h, w, 3] in [0, 1]; None where there is none.
        """
        from deepface.modules import detection
        from deepface.modules.exceptions import FaceNotDetected, ImgNotFound

        try:
            (found,) = detection.extract_faces(frame[..., ::-1], detector_backend=self.name, max_faces=1)
        except (FaceNotDetected, ImgNotFound):
            return None
        area = found["facial_area"]
        box = (area["x"], area["y"], area["x"] + area["w"], area["y"] + area["h"])
        return (tuple(map(float, box)), found["face"]) if min(area["w"], area["h"]) > 0 else None

    @property
    def provenance(self) -> dict[str, str]:
        """The versions and the weights' digest, for the dataset's metadata."""
        package = {"retinaface": "retina-face", "mtcnn": "mtcnn", "opencv": "opencv-contrib-python-headless"}[self.name]
        found = {"detector": f"{self.name}, DeepFace {version('deepface')}, {package} {version(package)}"}
        if self.name == "retinaface":
            found["weights"] = digest_file(_weights_folder() / _retinaface_file()[0])
        return found


class Estimator:
    """Age, gender and ethnicity of faces in batches; the figures are `DeepFace.analyze`'s. Make it after `start`."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._models = {name: _build("facial_attribute", MODELS[name]) for name in names}

    def __call__(self, faces: Sequence[np.ndarray]) -> list[dict[str, float | int]]:
        """Faces float RGB [h, w, 3] in [0, 1], of any size, to age in years and the labels' indices, for each."""
        parts = [self._batch(faces[i : i + BATCH]) for i in range(0, len(faces), BATCH)]
        return [estimate for part in parts for estimate in part]

    def _batch(self, faces: Sequence[np.ndarray]) -> list[dict[str, float | int]]:
        from deepface.modules.preprocessing import resize_image

        inputs = np.concatenate([resize_image(face[..., ::-1], INPUT) for face in faces])
        # DeepFace drops the first axis of a batch of one.
        scores = {name: np.reshape(model.predict(inputs), (len(faces), -1)) for name, model in self._models.items()}
        return [{name: _value(name, scores[name][i]) for name in self.names} for i in range(len(faces))]

    @property
    def provenance(self) -> dict[str, str]:
        """The digest of each model's weights, for the dataset's metadata."""
        engine = os.environ["DEEPFACE_BACKEND_ENGINE"]
        digests = {name: digest_file(_weights_folder() / _model_file(MODELS[name])[0]) for name in self.names}
        return {"estimator": f"DeepFace {version('deepface')}, {engine}", **digests}


def _value(name: str, scores: np.ndarray) -> float | int:
    if name == "age":
        return float(scores[0])
    return LABELS[name].index(CLASSES[name][int(scores.argmax())])


def _build(task: str, name: str) -> object:
    """One of DeepFace's models, its weights loaded; `UserError` where they are missing."""
    from deepface.modules import modeling

    try:
        with quiet():
            return modeling.build_model(task=task, model_name=name)
    except Exception as error:  # missing weights, a damaged file, a missing package: each engine has its own
        raise UserError(_explain(task, name, error)) from error


def _explain(task: str, name: str, error: Exception) -> str:
    if task == "face_detector" and name != "retinaface":
        return f"config.extract.detector={name}: {_first_line(error)}"
    file, url = _retinaface_file() if task == "face_detector" else _model_file(name)
    path = _weights_folder() / file
    if path.exists():
        return f"DeepFace's {name}: {path} cannot be loaded ({_first_line(error)}); remove it and fetch it again"
    return (
        f"DeepFace's {name}: no weights at {path}, nor could they be downloaded; where there is a network: "
        f"curl -L --create-dirs -o '{path}' {url}; or set config.extract.deepface.home"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _weights_folder() -> Path:
    from deepface.commons import folder_utils

    return Path(folder_utils.get_deepface_home()) / ".deepface" / "weights"


def _model_file(name: str) -> tuple[str, str]:
    """File name and address of a facial-attribute model's weights."""
    from deepface.modules import modeling

    module = importlib.import_module(modeling.get_model_class("facial_attribute", name).__module__)
    return _named(module.WEIGHTS_URL)


def _retinaface_file() -> tuple[str, str]:
    kind = {"pytorch": "_pth", "onnx": "_onnx", "tensorflow": ""}[os.environ["DEEPFACE_BACKEND_ENGINE"]]
    return _named(importlib.import_module(f"retinaface.model.retinaface{kind}_model").WEIGHTS_URLS)


def _named(urls: str | Sequence[str]) -> tuple[str, str]:
    url = urls if isinstance(urls, str) else urls[0]
    return url.rsplit("/", 1)[1], url
