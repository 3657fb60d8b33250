"""Thumbnails of the face in a picture, by DeepFace's detectors."""

import numpy as np
import pytest
from PIL import Image

from app.faces import crop
from slf_common.errors import UserError

pytest.importorskip("deepface", reason="needs the extra `extract`")
pytestmark = pytest.mark.frameworks


@pytest.fixture
def photograph(tmp_path):
    """A photograph of Eileen Collins by NASA, beside a wide empty area."""
    astronaut = pytest.importorskip("skimage.data").astronaut()
    path = tmp_path / "photograph.png"
    Image.fromarray(np.pad(astronaut, ((0, 0), (0, 600), (0, 0)), constant_values=128)).save(path)
    return path


def test_the_face_is_found_and_cropped(system, photograph):
    face, centre = (system.read_thumbnail(photograph, face=found) for found in (True, False))
    assert face.shape == (128, 128, 3) and face.dtype == np.uint8
    assert face.std() > 40 > centre[:, 64:].std()  # the centre square is half empty
    skin = face[54:74, 54:74].reshape(-1, 3).mean(0)
    assert skin[0] > skin[1] > skin[2]  # reddish: the middle of a face
    assert system.draw(thumbnail=photograph, face=True).shape == (1, 1, 128, 128, 3)


def test_a_picture_without_a_face_is_one_line(system, picture):
    with pytest.raises(UserError, match=f"{picture}: no face in 1 frame; give a picture of one face"):
        system.read_thumbnail(picture, face=True)


def test_the_detectors_of_the_training_data_are_used_without_skip(photograph, picture):
    """The detectors that a dataset's metadata names could not be loaded."""
    about = {"faces": {"detector": "opencv,skip", "opencv": "DeepFace 0.0.103"}}
    np.testing.assert_array_equal(crop(photograph, about), crop(photograph, {}))
    with pytest.raises(UserError, match="no face in 1 frame; give a picture of one face"):
        crop(picture, about)
