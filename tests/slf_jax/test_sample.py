import numpy as np
import pytest
from PIL import Image

from slf_common.errors import UserError
from slf_common.pictures import BACKGROUND, read_picture
from slf_jax import features, sample
from slf_jax.cascade.images import make_thumbnail, to_float, to_uint8
from slf_jax.evaluation import metrics
from slf_jax.inference.metadata import unique_names
from slf_jax.inference.people import read_thumbnail
from tfrecords.reader import Clips
from tfrecords.schema import Constituent, Schema


@pytest.fixture(scope="module")
def draw(run, tmp_path_factory):
    """Runs the command; returns its images by name, without the contact sheet."""

    def main(*flags):
        out = tmp_path_factory.mktemp("faces")
        sample.main(["--workdir", run.workdir, "--out", str(out), "--people", "2", *flags])
        assert (out / "contact_sheet.png").stat().st_size > 1000
        return {path.stem: Image.open(path) for path in sorted(out.glob("*.png")) if path.stem != "contact_sheet"}

    return main


def error_of(picture, face):
    return metrics.thumbnail_error(np.asarray(picture)[None], face[None])[0]


def test_every_face_records_its_provenance(run, draw):
    faces = draw("--samples", "2", "--scale", "2:1", "--seed", "5", "--without", "mel")
    clips = Clips(run.data.dir, "test")
    name = unique_names([clips[0]["clip_id"]])[0]
    assert list(faces)[:2] == [f"{name}_00", f"{name}_01"] and len(faces) == 4
    first = faces[f"{name}_00"]
    assert first.size == (128, 128)
    notes = first.text
    assert notes["synthetic"].startswith("yes") and notes["clip"] == clips[0]["clip_id"]
    assert (notes["seed"], notes["sample"], notes["scale"], notes["without"]) == ("5", "0", "2:1", "mel")
    assert (notes["guidance"], notes["sampler"], notes["NFE"]) == ("cfg", "ddim", "base 3, upsampler 3")
    assert notes["thumbnail"] == "of the clip's face" and "base " in notes["checkpoints"]
    assert not np.array_equal(first, faces[f"{name}_01"])


def test_faces_match_the_thumbnail_if_there_is_one(run, draw, tmp_path):
    clip = Clips(run.data.dir, "test")[0]
    name = unique_names([clip["clip_id"]])[0]
    other = np.random.default_rng(0).integers(60, 190, (8, 8, 3)).astype(np.uint8)
    Image.fromarray(other).save(tmp_path / "thumbnail.png")
    own, free = draw()[name], draw("--no-thumbnail")[name]
    foreign = draw("--thumbnail", str(tmp_path / "thumbnail.png"))[name]
    assert error_of(own, clip["face"]) < 1 < error_of(free, clip["face"])
    assert error_of(foreign, other.repeat(16, 0).repeat(16, 1)) < 1 < error_of(foreign, clip["face"])
    assert free.text["thumbnail"] == "none" and foreign.text["thumbnail"] == "thumbnail.png"


def test_each_stage_runs_alone(draw):
    small, large = draw("--stages", "base"), draw("--stages", "upsampler")
    assert {picture.size for picture in small.values()} == {(32, 32)}
    assert {picture.size for picture in large.values()} == {(128, 128)}
    assert list(large.values())[0].text["checkpoints"].startswith("upsampler ")


def test_clips_are_chosen_by_id(run, draw):
    clips = Clips(run.data.dir, "test")
    ids = [clips[3]["clip_id"], clips[1]["clip_id"]]
    assert set(draw("--clips", ids[0], "--clips", ids[1])) == set(unique_names(ids))


def test_equal_file_names_are_made_unique():
    names = unique_names(["a/b", "a_b", "c"])
    assert len(set(names)) == 3 and names[2] == "c"


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--scale", "nan"], "--scale nan: a guidance scale is a finite"),
        (["--scale", "1,2"], "give one"),
        (["--stages", "third"], "--stages third"),
        (["--no-thumbnail", "--stages", "upsampler"], "--no-thumbnail"),
        (["--thumbnail", "README.md"], "README.md: the image cannot be read"),
        (["--thumbnail", "none.png"], "none.png: cannot be read .No such file"),
        (["--clips", "unknown"], "no clip 'unknown'"),
        (["--clips", "a,b"], "no clip 'a,b' .* several ids with spaces between them, --clips ID ID"),
        (["--clips", "a", "b", "a"], "--clips: a is given twice"),
        (["--without", "mel,age,mel"], "--without mel,age,mel: mel is given twice"),
        (["--without", "voice"], "'voice' is not an input"),
        (["--people", "0"], "--people 0"),
    ],
)
def test_invalid_arguments_are_rejected_in_one_line(run, tmp_path, flags, message):
    with pytest.raises(UserError, match=message) as error:
        sample.main(["--workdir", run.workdir, "--out", str(tmp_path / "out"), *flags])
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


MEL, ECAPA = Constituent("mel", 111, 768, "continuous"), Constituent("ecapa", 1, 192, "embedding", weights="aa")


def statistics(mean=0.0, std=1.0):
    return {"mel": {"mean": np.full(768, mean), "std": np.full(768, std)}}


@pytest.mark.parametrize(
    "schema, given, message",
    [
        (Schema((MEL, ECAPA)), statistics(0.5, 2.0), None),
        (Schema((MEL, ECAPA)), None, None),  # a dataset without a training split (fault 9)
        (Schema((MEL,)), statistics(), "has no 'ecapa'.*or use another run"),
        (Schema((Constituent("mel", 100, 768, "continuous"), ECAPA)), statistics(), "'mel' has rows 100, .* with 111"),
        (Schema((Constituent("mel", 111, 64, "continuous"), ECAPA)), statistics(), "'mel' has width 64, .* with 768"),
        (Schema((MEL, Constituent("ecapa", 1, 192, "embedding", weights="bb"))), statistics(), "has weights bb, .* aa"),
        (Schema((MEL, ECAPA)), statistics(mean=40.0), "'mel' differs by 40.0 standard deviations"),
        (Schema((MEL, ECAPA)), statistics(std=100.0), "by a factor of 1e\\+02;"),
    ],
)
def test_features_that_differ_from_training_are_rejected(schema, given, message):
    arguments = (
        ("mel", "ecapa", "age"),
        Schema((MEL, ECAPA)),
        statistics(),
        schema,
        given,
        "data/other",
        "use another run",
    )
    if message is None:
        features.check_same_features(*arguments)
    else:
        with pytest.raises(UserError, match=f"data/other: .*{message}|data/other: {message}") as error:
            features.check_same_features(*arguments)
        assert "\n" not in str(error.value)


def test_8x8_thumbnail_is_used_unchanged(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "8.png")
    face = read_thumbnail(tmp_path / "8.png")
    assert face.shape == (128, 128, 3)
    np.testing.assert_array_equal(to_uint8(make_thumbnail(to_float(face[None])))[0], pixels)


def test_thumbnail_is_read_like_images_in_extraction(tmp_path):
    """16-bit values are scaled, transparent pixels are blended (fault 12)."""
    grey = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(grey).save(tmp_path / "16.png")
    Image.new("RGBA", (8, 8), (255, 255, 255, 0)).save(tmp_path / "clear.png")
    for name in ("16.png", "clear.png"):
        pixels = read_thumbnail(tmp_path / name)[8::16, 8::16]
        np.testing.assert_array_equal(pixels, read_picture(tmp_path / name))
    assert 100 < read_thumbnail(tmp_path / "16.png").mean() < 150
    assert (read_thumbnail(tmp_path / "clear.png") == BACKGROUND).all()


def test_unreadable_thumbnail_is_a_one_line_error(tmp_path):
    """For any exception of Pillow and any error of the file system (faults 6 and 11)."""
    Image.new("RGB", (64, 64), (9, 8, 7)).save(tmp_path / "whole.png")
    data = bytearray((tmp_path / "whole.png").read_bytes())
    data[8:12] = bytes(4)  # invalid header length: a ValueError or SyntaxError in Pillow
    (tmp_path / "header.png").write_bytes(data)
    (tmp_path / "cut.png").write_bytes(data[:60])
    (tmp_path / "empty.png").touch()
    for name, reason in [
        ("header.png", "the image cannot be read"),
        ("cut.png", "the image cannot be read"),
        ("empty.png", "the file is empty"),
        ("none.png", "No such file"),
        (".", "Is a directory"),
    ]:
        with pytest.raises(UserError, match=f"{tmp_path / name}: .*{reason}") as error:
            read_thumbnail(tmp_path / name)
        assert "\n" not in str(error.value)
