"""Weights inside installed packages: found without importing the package, and given to DeepFace."""

import sys
from pathlib import Path

import pytest

from slf_common import packaged_weights
from slf_common.packaged_weights import find_packaged, provide_to_deepface

pytestmark = pytest.mark.frameworks


@pytest.fixture()
def packages(tmp_path, monkeypatch):
    """A folder on `sys.path` with two packages, one of which cannot be imported, and their weights."""
    for name in ("broken_models", "other_models"):
        (tmp_path / name / "data").mkdir(parents=True)
        (tmp_path / name / "__init__.py").write_text("raise ImportError('no pkg_resources')")
    shipped = {"net.dat": (("broken-models", "broken_models/data"), ("other-models", "other_models/data"))}
    monkeypatch.setattr(packaged_weights, "SHIPPED", shipped)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_weight_file_is_found_without_importing_its_package(packages):
    assert find_packaged("net.dat") is None
    second = packages / "other_models" / "data" / "net.dat"
    second.write_bytes(b"2")
    assert find_packaged("net.dat") == second
    first = packages / "broken_models" / "data" / "net.dat"
    first.write_bytes(b"1")
    assert find_packaged("net.dat") == first
    assert find_packaged("another.dat") is None and "broken_models" not in sys.modules


def test_the_landmarks_for_non_commercial_use_are_not_offered():
    assert find_packaged("shape_predictor_68_face_landmarks.dat") is None


def test_deepface_takes_its_own_file_then_a_packages_then_downloads(packages, tmp_path, monkeypatch):
    weight_utils = pytest.importorskip("deepface.commons.weight_utils", reason="needs the extra `extract`")
    home = tmp_path / "home"
    monkeypatch.setenv("DEEPFACE_HOME", str(home))
    own = home / ".deepface" / "weights" / "net.dat"
    own.parent.mkdir(parents=True)

    def download(file_name, source_url, compress_type=None):
        return f"downloaded {file_name} from {source_url} as {compress_type}"

    monkeypatch.setattr(weight_utils, "download_weights_if_necessary", download)
    provide_to_deepface()
    provide = weight_utils.download_weights_if_necessary
    provide_to_deepface()
    assert weight_utils.download_weights_if_necessary is provide
    found = provide(file_name="net.dat", source_url="URL", compress_type="bz2")
    assert found == "downloaded net.dat from URL as bz2"
    packaged = packages / "broken_models" / "data" / "net.dat"
    packaged.write_bytes(b"1")
    assert Path(provide("net.dat", "URL")) == packaged and not own.exists()
    own.write_bytes(b"2")
    assert provide("net.dat", "URL").startswith("downloaded")  # DeepFace's function returns its own file
