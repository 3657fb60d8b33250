"""Faces from Python: `slf_jax.load` with the system that comes with the repository."""

import numpy as np
import pytest
from PIL import Image

import slf_jax
from slf_common.errors import UserError
from slf_jax.cascade.images import downscale
from slf_jax.evaluation import metrics


def test_the_shipped_system_draws_from_a_voice(system, voice):
    faces = system.draw(voice=voice, scales=(0, 2, (4, 1)), samples=2, seed=3)
    assert faces.shape == (3, 2, 128, 128, 3) and faces.dtype == np.uint8
    assert not np.array_equal(faces[1, 0], faces[1, 1])  # another sample
    assert np.array_equal(faces, system.draw(voice=voice, scales=(0, 2, (4, 1)), samples=2, seed=3))
    assert not np.array_equal(faces, system.draw(voice=voice, scales=(0, 2, (4, 1)), samples=2, seed=4))


def test_scale_0_ignores_everything_but_the_thumbnail(system, voice, picture):
    """And a scale above 0 does not."""
    both = system.draw(voice=voice, thumbnail=picture, age=70, scales=(0, 2))
    alone = system.draw(thumbnail=picture, scales=(0, 2))
    np.testing.assert_allclose(both[0], alone[0], atol=1)
    assert np.abs(both[1].astype(int) - alone[1]).mean() > 1


def test_faces_keep_the_thumbnail(system, picture):
    faces = system.draw(thumbnail=picture, gender="female", scales=(1, 4))
    shown = system.read_thumbnail(picture)
    assert shown.shape == (128, 128, 3)
    assert metrics.thumbnail_error(faces[:, 0], np.stack([shown, shown])).max() < 1


def test_a_recording_can_be_heard_once_and_used_often(system, voice):
    heard = system.listen(voice)
    assert heard.seconds == pytest.approx(3, abs=0.1)
    assert np.array_equal(system.draw(voice=heard), system.draw(voice=voice))
    person = system.describe_person(voice=heard, age=34)
    matrix, mask = system.matrix(person)
    blocks = system.trained.system.layout
    known = {block.name for block in blocks.blocks if mask[block.start : block.stop].all()}
    assert matrix.shape == (256, 768) and known == {"mel", "pyaudioanalysis", "age"}
    assert matrix[blocks["age"].start, 0] == pytest.approx(0.34)


@pytest.mark.parametrize(
    "inputs, reason",
    [
        ({}, "nothing to draw from"),
        ({"gender": "robot"}, "gender 'robot' must be one of female, male"),
        ({"age": 300}, "age 300: must be from 0 to 120 years"),
        ({"language": "english"}, "this system does not use language; its inputs are: pyaudioanalysis, mel, age"),
        ({"voice": "nowhere.wav"}, "nowhere.wav: no such file"),
        ({"voice": "README.md"}, "README.md: "),
        ({"thumbnail": "README.md"}, "README.md: the image cannot be read"),
    ],
)
def test_unusable_inputs_are_one_line(system, inputs, reason):
    with pytest.raises(UserError) as error:
        system.draw(**inputs)
    assert str(error.value).startswith(reason) and "\n" not in str(error.value)


def test_any_picture_gives_a_thumbnail(system, tmp_path):
    """A large photograph, an animation and transparency; the thumbnail is the average of the centre square."""
    rng = np.random.default_rng(0)
    colours = np.kron(rng.integers(0, 255, (8, 8, 3)), np.ones((32, 32, 1))).astype(np.uint8)
    wide = np.pad(colours, ((0, 0), (100, 100), (0, 0)))
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(colours).save(tmp_path / "moving.gif", save_all=True, append_images=[Image.new("RGB", (256, 256))])
    Image.fromarray(np.kron(colours, np.ones((16, 16, 1))).astype(np.uint8)).save(tmp_path / "large.jpg", quality=95)
    clear = np.dstack([colours, np.where(np.arange(256) < 128, 0, 255)[None].repeat(256, 0)]).astype(np.uint8)
    Image.fromarray(clear, "RGBA").save(tmp_path / "clear.png")
    expected = colours[::32, ::32]
    read = {name: downscale(system.read_thumbnail(tmp_path / name)[None])[0] for name in ("wide.png", "large.jpg")}
    for thumbnail in read.values():
        np.testing.assert_allclose(thumbnail, expected, atol=3)
    assert downscale(system.read_thumbnail(tmp_path / "moving.gif")[None]).shape == (1, 8, 8, 3)
    flattened = downscale(system.read_thumbnail(tmp_path / "clear.png")[None])[0]
    np.testing.assert_allclose(flattened[:, 4:], expected[:, 4:], atol=1)
    np.testing.assert_allclose(flattened[:, :4], 128, atol=1)


def test_a_missing_system_is_one_line(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}: no checkpoint of stage 'base'"):
        slf_jax.load(str(tmp_path))
