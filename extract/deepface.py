"""DeepFace: its face detectors, and its models of age, gender and ethnicity, on the engine the config names.

DeepFace keeps its weights in `$DEEPFACE_HOME/.deepface/weights` and downloads what is missing there.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import packages_distributions, version
from pathlib import Path

import numpy as np

from extract.frameworks import digest_file, quiet
from slf_common.errors import UserError
from slf_common.files import local_path
from tfrecords.schema import LABELS

USUAL = ("retinaface", "opencv", "mtcnn")  # detectors; DeepFace has more
ENGINES = ("pytorch", "onnx", "tensorflow")
# Our names -> DeepFace's models, and the packages' own order of classes in our spelling.
MODELS = {"age": "Age", "gender": "Gender", "ethnicity": "Race"}
CLASSES = {"gender": ("female", "male"), "ethnicity": LABELS["ethnicity"]}
_MISSING = 'faces need the package {}: pip install -e ".[extract]"'
# The modules whose packages' versions belong to a detector's provenance; OpenCV runs the others.
_MODULES = {name: name for name in ("retinaface", "mtcnn", "dlib", "mediapipe")}
_MODULES |= {"yolo": "ultralytics", "fastmtcnn": "facenet_pytorch"}
BATCH = 32  # faces in one forward pass
INPUT = (224, 224)


def installed() -> bool:
    """Whether DeepFace is, without importing it."""
    return importlib.util.find_spec("deepface") is not None


def check_detector(name: str) -> None:
    """Raises `UserError` for a detector that the installed DeepFace does not have; loads no model and no engine."""
    if name in USUAL:
        return
    if not installed():
        raise UserError(
            f"config.extract.detector={name}: no such detector, or one of DeepFace's others, which is not installed "
            f'(pip install -e ".[extract]"); the usual ones are {", ".join(USUAL)}, skip'
        )
    from deepface.modules import modeling

    known = modeling.AVAILABLE_MODELS["face_detector"]
    if name not in known:
        others = sorted(set(known) - set(USUAL))
        raise UserError(
            f"config.extract.detector={name}: no such detector; must be one of: {', '.join((*USUAL, 'skip', *others))}"
        )


def check_installed(settings: Mapping) -> None:
    """Raises `UserError` where `config.extract` needs DeepFace and it is missing here."""
    if (settings["detector"] != "skip" or settings["deepface"]["estimate"]) and not installed():
        raise UserError(_MISSING.format("deepface"))


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
        raise UserError(_MISSING.format(error.name)) from error
    except (ValueError, OSError) as error:
        raise UserError(f"config.extract.deepface: {_first_line(error)}") from error
    if running != settings["engine"]:
        raise UserError(f"DeepFace runs on {running} in this process already, not on {settings['engine']}")


class Detector:
    """Finds the largest face of a frame, with one of DeepFace's detectors. Make it after `start`."""

    def __init__(self, name: str) -> None:
        self.name = name
        with _explained("face_detector", name) as files:
            # Some load their weights when they are first used.
            self(np.zeros((64, 64, 3), np.uint8))
        self._files = files

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
        known = (module for prefix, module in _MODULES.items() if self.name.startswith(prefix))
        packages = packages_distributions().get(next(known, "cv2"), [])
        about = [f"{package} {version(package)}" for package in sorted(set(packages))]
        found = {"detector": ", ".join([self.name, f"DeepFace {version('deepface')}", *about])}
        if self._files:
            found["weights"] = " ".join(digest_file(path) for path in self._files)
        return found


class Estimator:
    """Age, gender and ethnicity of faces in batches; the figures are `DeepFace.analyze`'s. Make it after `start`."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._models, self._files = {}, {}
        for name in names:
            with _explained("facial_attribute", MODELS[name]) as files:
                from deepface.modules import modeling

                self._models[name] = modeling.build_model("facial_attribute", MODELS[name])
            self._files[name] = files

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
        digests = {name: " ".join(digest_file(path) for path in self._files[name]) for name in self.names}
        return {"estimator": f"DeepFace {version('deepface')}, {engine}", **digests}


def _value(name: str, scores: np.ndarray) -> float | int:
    if name == "age":
        return float(scores[0])
    return LABELS[name].index(CLASSES[name][int(scores.argmax())])


_LOADED: dict[
    tuple[str, str], list[Path]
] = {}  # DeepFace builds a model once in a process, and so reads its files once


@contextmanager
def _explained(task: str, name: str) -> Iterator[list[Path]]:
    """Inside, one of DeepFace's models is built: yields the files of its weights, and tells what is missing.

    Raises `UserError` for missing weights, a damaged file, a missing package: each model raises its own.
    """
    from deepface.commons import weight_utils

    fetch, files, wanted = weight_utils.download_weights_if_necessary, [], []

    def watched(file_name: str, source_url: str | list[str], *others: object, **named: object) -> str:
        wanted[:] = file_name, source_url
        files.append(Path(fetch(file_name, source_url, *others, **named)))
        wanted.clear()
        return str(files[-1])

    weight_utils.download_weights_if_necessary = watched
    try:
        with quiet():
            yield _LOADED.setdefault((task, name), files)
            if name == "retinaface":  # it has a loader of its own
                files.append(_weights_folder() / _retinaface_file()[0])
    except Exception as error:
        del _LOADED[task, name]
        if name == "retinaface" and not isinstance(error, ImportError):
            wanted = list(_retinaface_file())
        raise UserError(_explain(task, name, error, wanted, files)) from error
    finally:
        weight_utils.download_weights_if_necessary = fetch


def _explain(task: str, name: str, error: Exception, wanted: Sequence, files: Sequence[Path]) -> str:
    """What is wrong with a model, and what to do. `wanted`: name and address of a file that is not there."""
    what = f"config.extract.detector={name}" if task == "face_detector" else f"DeepFace's {name}"
    path = _weights_folder() / wanted[0] if wanted else next(reversed(files), None)
    if path is not None and path.exists():
        return f"{what}: {path} cannot be loaded ({_first_line(error)}); remove it and fetch it again"
    if path is None or not wanted:
        return f"{what}: {_first_line(error)}"
    url = wanted[1] if isinstance(wanted[1], str) else wanted[1][0]
    packed = Path(url).suffix if Path(url).suffix in (".bz2", ".zip") else ""
    unpack = f", unpack it ({packed})" if packed else ""
    return (
        f"{what}: no weights at {path}, nor could they be downloaded; where there is a network: "
        f"curl -L --create-dirs -o '{path}{packed}' {url}{unpack}; or set config.extract.deepface.home"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _weights_folder() -> Path:
    from deepface.commons import folder_utils

    return Path(folder_utils.get_deepface_home()) / ".deepface" / "weights"


def _retinaface_file() -> tuple[str, str]:
    """File name and address of RetinaFace's weights."""
    kind = {"pytorch": "_pth", "onnx": "_onnx", "tensorflow": ""}[os.environ["DEEPFACE_BACKEND_ENGINE"]]
    urls = importlib.import_module(f"retinaface.model.retinaface{kind}_model").WEIGHTS_URLS
    url = urls if isinstance(urls, str) else urls[0]
    return url.rsplit("/", 1)[1], url
