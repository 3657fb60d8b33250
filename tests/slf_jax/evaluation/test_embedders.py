"""dlib's face network, and the choice of an embedder."""

import numpy as np
import pytest
from PIL import Image
from records import make_clip

from slf_common.errors import UserError
from slf_common.packaged_weights import find_packaged
from slf_jax.evaluation import dlib_network, embedders
from slf_jax.evaluation.dlib_network import DlibEmbedder
from slf_jax.evaluation.features import LinearEstimates
from tfrecords.reader import Clips

pytestmark = pytest.mark.frameworks
needs_dlib = pytest.mark.skipif(
    not find_packaged(dlib_network.NETWORK), reason="needs face-recognition-models, of the extra `evaluate`"
)


@pytest.fixture(scope="module")
def face():
    """A real face that fills its picture, 128x128: NASA's portrait of Eileen Collins, which scikit-image ships."""
    data = pytest.importorskip("skimage.data")
    portrait = Image.fromarray(data.astronaut()).crop((165, 45, 293, 173))
    return np.asarray(portrait)


@pytest.fixture(scope="module")
def drawn():
    """Faces of eight drawn people."""
    from extract.talkers import population

    rng = np.random.default_rng(0)
    scenes = [(population.draw_identity(0, i), population.draw_scene(rng)) for i in range(8)]
    faces = [population.face.render(identity, scene, (0.0,))[0] for identity, scene in scenes]
    return np.stack([np.asarray(Image.fromarray(face).resize((128, 128))) for face in faces])


@needs_dlib
def test_dlib_finds_and_recognises_a_face(face):
    embedder = DlibEmbedder()
    dimmed = (face * 0.8).astype(np.uint8)
    pictures = np.stack([face, np.zeros_like(face), dimmed, face[:, ::-1]])
    vectors, found = embedder.embed(pictures)
    assert found.tolist() == [True, False, True, True] and not vectors[1].any()
    for other in (2, 3):  # the same person at another brightness, and mirrored
        assert np.linalg.norm(vectors[0] - vectors[other]) < 0.35 < embedders.SAME_PERSON
    assert embedder(pictures).labels == {} and embedder.metric == "l2"


@needs_dlib
def test_dlib_finds_a_face_that_fills_its_picture_by_padding_it(face):
    tight = np.asarray(Image.fromarray(face[20:98, 20:98]).resize((128, 128)))
    embedder = DlibEmbedder()
    boxes, _, _ = embedder._find.run(tight, 0, dlib_network.MIN_SCORE)
    assert not boxes and embedder.embed(tight[None])[1].all()
    assert DlibEmbedder(detector="skip").embed(np.zeros_like(tight)[None])[1].all()


@needs_dlib
def test_embedding_equals_deepfaces(face, monkeypatch, tmp_path):
    """DeepFace's client for the same network, given the same aligned face."""
    pytest.importorskip("deepface")
    from slf_common.packaged_weights import provide_to_deepface

    monkeypatch.setenv("DEEPFACE_HOME", str(tmp_path))
    provide_to_deepface()
    from deepface.models.facial_recognition.dlib.Dlib import DlibClient

    embedder = DlibEmbedder()
    aligned = embedder._align(face)
    assert aligned.shape == (150, 150, 3)
    theirs = DlibClient().forward(aligned[..., ::-1])
    assert embedder.embed(face[None])[0][0] == pytest.approx(theirs, abs=1e-6)


@needs_dlib
def test_auto_chooses_dlib_for_people_and_eigenfaces_for_drawings(dataset, drawn, monkeypatch, capsys):
    monkeypatch.setattr(dlib_network.LinearEstimates, "__init__", None)  # nothing is fitted before the choice
    train = Clips(dataset, "train")
    monkeypatch.setenv("DEEPFACE_HOME", "/nonexistent")
    assert embedders.choose_embedder("auto", "", "", None, drawn[:1]).name == "dlib"  # a single one cannot be mistaken
    noise = np.stack([make_clip(i)["face"] for i in range(4)])
    reason = embedders._unsuitable(DlibEmbedder(), noise)
    assert "finds a face in only 0 of 4" in reason
    reason = embedders._unsuitable(DlibEmbedder(), drawn)
    assert "takes most of these different people for the same" in reason
    monkeypatch.setattr(embedders, "SAME_PERSON", 0.1)
    assert embedders.choose_embedder("auto", "", "", train, drawn).name == "dlib"
    assert not capsys.readouterr().err


def test_auto_says_in_one_line_why_it_chose_eigenfaces(dataset, monkeypatch, capsys):
    monkeypatch.setattr(dlib_network, "find_packaged", lambda name: None)
    monkeypatch.setattr(embedders, "DeepFaceEmbedder", lambda *_: (_ for _ in ()).throw(embedders.NoNetwork("no net")))
    train = Clips(dataset, "train")
    assert embedders.choose_embedder("auto", "", "", train, np.zeros((2, 128, 128, 3), np.uint8)).name == "eigenfaces"
    (line,) = capsys.readouterr().err.splitlines()
    assert "by eigenfaces" in line and 'dlib and its weights: pip install -e ".[evaluate]"; no net' in line
    with pytest.raises(UserError, match="--embedder dlib needs dlib"):
        embedders.make_embedder("dlib", "", "", train)
    with pytest.raises(UserError, match="--detector opencv: must be one of: dlib, skip"):
        embedders.make_embedder("dlib", "", "opencv", train)


def test_attributes_are_read_from_embeddings_by_linear_models():
    rng = np.random.default_rng(0)
    vectors, gender = rng.normal(size=(200, 5)), rng.integers(0, 2, 200)
    vectors[:, 0] += 6 * gender
    records = {"age": np.where(np.arange(200) < 100, 30 + 10 * vectors[:, 1], np.nan), "gender": gender,
               "ethnicity": np.full(200, -1)}  # fmt: skip
    found = np.arange(200) != 7
    age, labels = LinearEstimates(vectors, records)(vectors, found)
    assert set(labels) == {"gender"} and labels["gender"][7] == -1 and np.isnan(age[7])
    assert (labels["gender"] == gender)[found].mean() > 0.98
    assert np.abs(age - 30 - 10 * vectors[:, 1])[found].max() < 1.5


@needs_dlib
def test_dlib_reads_attributes_from_training_labels(dataset, face, monkeypatch):
    """Labels of the training split are used where a face is found in it; without any, nothing is read."""
    embedder = DlibEmbedder(train=Clips(dataset, "train"))
    rng = np.random.default_rng(0)

    def embed(faces, progress=""):  # the test's records show no faces
        return rng.normal(size=(len(faces), 128)).astype(np.float32), np.ones(len(faces), bool)

    monkeypatch.setattr(embedder, "embed", embed)
    features = embedder(face[None])
    assert set(features.labels) <= {"gender", "ethnicity"} and features.labels["gender"].shape == (1,)
