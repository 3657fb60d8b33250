"""Faces: cutting them out, finding them with DeepFace's real detectors, estimating age, gender and ethnicity."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from extract import deepface, faces
from extract.clips import find_clips
from extract.media import MediaError, face_frames
from extract.talkers.population import generate
from slf_common.errors import UserError
from tfrecords.schema import LABELS

ROOT = Path(__file__).parents[2]


def whole(frame: np.ndarray) -> np.ndarray:
    return faces.find_face([frame], faces.load_detector("skip")).picture


@pytest.mark.parametrize("height, width", [(128, 128), (300, 512), (512, 300), (7, 9)])
def test_without_a_detector_a_face_is_the_middle_square_of_the_frame(height, width):
    ramp = np.broadcast_to(np.linspace(0, 255, width), (height, width))
    face = whole(np.repeat(ramp[..., None], 3, axis=2).astype(np.uint8))
    assert face.shape == (128, 128, 3) and face.dtype == np.uint8
    assert face.mean() == pytest.approx(127.5, abs=2)
    shown = min(height, width) / width  # share of the frame's width that the square has
    assert np.ptp(face[64, 8:-8, 0].astype(float)) == pytest.approx(255 * shown * 112 / 128, abs=0.1 * 255)


def test_a_frame_of_the_right_size_is_left_as_it_is():
    frame = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    np.testing.assert_array_equal(whole(frame), frame)


def test_scaling_down_is_antialiased():
    stripes = np.zeros((1024, 1024, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(whole(stripes).astype(int) - 127).max() < 10


def test_a_box_grows_by_the_margins_within_the_frame():
    frame = np.zeros((200, 400, 3), np.uint8)
    frame[60:150, 105:195] = 255  # the square in the box (125, 80, 175, 130) with its margins
    box = (125.0, 80.0, 175.0, 130.0)
    assert (faces.cut_face(frame, box) > 128).all()
    assert (faces.cut_face(frame, box, margins=(0.5, 0.6))[[0, -1]] < 128).all()
    assert faces.cut_face(frame, (0.0, 0.0, 180.0, 190.0)).shape == (128, 128, 3)


def test_the_first_frame_with_a_face_is_taken():
    frames = [np.full((200, 200, 3), level, np.uint8) for level in (10, 20, 200, 220)]
    asked = []

    def bright(frame):
        asked.append(frame[0, 0, 0])
        return ((50.0, 50.0, 150.0, 150.0), frame / 255) if frame.max() > 100 else None

    assert (faces.find_face(iter(frames), bright).picture == 200).all() and asked == [10, 20, 200]
    with pytest.raises(MediaError, match="no face in 2 frames"):
        faces.find_face(iter(frames[:2]), bright)
    with pytest.raises(MediaError, match="no face in 1 frame$"):
        faces.find_face(frames[:1], bright)


@pytest.fixture(scope="module")
def deepface_home(tmp_path_factory):
    """DeepFace on its engine onnx, with tiny graphs in place of its weights."""
    pytest.importorskip("deepface", reason="needs the extra `extract`")
    from extract.random_weights import write_small_faces

    home = tmp_path_factory.mktemp("deepface")
    write_small_faces(home)
    deepface.start({"home": str(home), "engine": "onnx"})
    return home


@pytest.fixture(scope="module")
def astronaut():
    return pytest.importorskip("skimage.data").astronaut()  # a photograph of Eileen Collins, 512x512, by NASA


def test_haar_finds_the_face_in_a_photograph(deepface_home, astronaut):
    (left, top, right, bottom), close = deepface.Detector("opencv")(astronaut)
    # Her eyes, nose and mouth, by eye: x 190-255, y 85-150.
    assert left < 190 and right > 255 and top < 90 and bottom > 150 and right - left < 150
    assert close.min() >= 0 and close.max() <= 1 and close.shape[2] == 3
    found = faces.find_face([astronaut], deepface.Detector("opencv"))
    assert found.picture.shape == (128, 128, 3)
    # Cut from the photograph: red and blue are not exchanged.
    np.testing.assert_allclose(
        found.picture.mean((0, 1)), astronaut[int(top) : int(bottom), int(left) : int(right)].mean((0, 1)), atol=60
    )
    assert found.picture[..., 0].mean() > found.picture[..., 2].mean()


def test_the_largest_of_several_faces_is_taken(deepface_home, astronaut):
    head = astronaut[:260, 100:360]
    frame = np.full((500, 800, 3), 128, np.uint8)
    frame[20:150, 30:160] = head[::2, ::2]
    frame[120:380, 450:710] = head
    (left, *_), _ = deepface.Detector("opencv")(frame)
    assert left > 450


def test_where_there_is_no_face_none_is_found(deepface_home):
    for frame in (np.zeros((120, 160, 3), np.uint8), np.full((1, 1, 3), 255, np.uint8)):
        assert deepface.Detector("opencv")(frame) is None


def test_haar_finds_drawn_talkers_too(deepface_home, tmp_path):
    generate(tmp_path, people=12, seed=0)
    found = []
    for clip in find_clips(tmp_path).clips:
        try:
            found.append(faces.find_face(face_frames(clip, 3), deepface.Detector("opencv")).picture)
        except MediaError as error:
            assert str(error) == "no face in 3 frames"
    assert len(found) >= 2 and all(face.std() > 20 for face in found)


def test_retinaface_runs_and_its_box_is_in_the_frames_pixels(deepface_home):
    frame = np.zeros((1000, 1600, 3), np.uint8)
    frame[350:650, 650:950] = 255
    (left, top, right, bottom), _ = deepface.Detector("retinaface")(frame)
    assert 650 <= (left + right) / 2 <= 950 and 350 <= (top + bottom) / 2 <= 650
    assert deepface.Detector("retinaface")(np.zeros((300, 300, 3), np.uint8)) is None
    provenance = deepface.Detector("retinaface").provenance
    assert provenance["detector"].startswith("retinaface, DeepFace 0.") and len(provenance["weights"]) == 16


def test_estimates_in_batches_are_what_deepface_says_of_each_face(deepface_home, astronaut):
    from deepface import DeepFace

    frames = [astronaut, np.ascontiguousarray(astronaut[::-1]), astronaut[:200, 100:400], 255 - astronaut]
    estimator = deepface.Estimator(("age", "gender", "ethnicity"))
    estimates = estimator([faces.whole_frame(frame)[1] for frame in frames])
    for frame, estimate in zip(frames, estimates, strict=True):
        (theirs,) = DeepFace.analyze(
            np.ascontiguousarray(frame[..., ::-1]), ("age", "gender", "race"), detector_backend="skip", silent=True
        )
        assert int(estimate["age"]) == theirs["age"]
        assert LABELS["gender"][estimate["gender"]] == {"Woman": "female", "Man": "male"}[theirs["dominant_gender"]]
        assert LABELS["ethnicity"][estimate["ethnicity"]] == theirs["dominant_race"]
    assert len({str(estimate) for estimate in estimates}) > 1
    assert estimator([faces.whole_frame(frames[2])[1]]) == [pytest.approx(estimates[2], rel=1e-4)]


def test_deepfaces_classes_are_in_our_order(deepface_home):
    from deepface.modules import demography

    assert (
        tuple({"Woman": "female", "Man": "male"}[name] for name in demography.GENDER_LABELS)
        == deepface.CLASSES["gender"]
    )
    assert tuple(demography.RACE_LABELS) == deepface.CLASSES["ethnicity"]


def test_missing_weights_are_told_with_path_and_command(deepface_home, tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPFACE_HOME", str(tmp_path))
    from deepface.modules import modeling

    monkeypatch.setattr(modeling, "cached_models", {"facial_attribute": {}}, raising=False)
    with pytest.raises(UserError) as error:
        deepface.Estimator(("age",))
    message = str(error.value)
    path = tmp_path / ".deepface/weights/age_model_weights.onnx"
    assert f"no weights at {path}" in message and f"curl -L --create-dirs -o '{path}' https://" in message
    assert "\n" not in message and not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"no graph")
    with pytest.raises(UserError, match="age_model_weights.onnx cannot be loaded"):
        deepface.Estimator(("age",))


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--config.extract.detector=magic", "no such detector; choose from: retinaface, opencv, mtcnn, skip"),
        ("--config.extract.frames=0", "frames=0: must be a whole number of at least 1"),
        ("--config.extract.deepface.engine=jax", "engine='jax': must be one of: pytorch, onnx, tensorflow"),
        ("--config.extract.deepface.estimate=mood", "each entry one of: age, gender, ethnicity"),
    ],
)
def test_mistakes_in_the_settings_are_told_before_anything_is_loaded(people_folder, tmp_path, extract, flag, message):
    with pytest.raises(UserError, match=message):
        extract("--videos", people_folder, "--out", tmp_path / "data", flag)


def test_without_deepface_the_extra_is_named(people_folder, tmp_path, command):
    hidden = "import sys; sys.modules['deepface'] = None"
    code = f"{hidden}; from extract.run import main; from slf_common import cli; cli.run(main)"
    places = ["--videos", str(people_folder), "--out", str(tmp_path)]
    arguments = [*command[3:], *places, "--config.extract.detector=opencv"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith("error: faces need the package deepface")
    assert 'pip install -e ".[extract]"' in done.stderr and done.stderr.count("\n") == 1
