"""Reading images: orientation, bit depth, transparency, colour, and damaged files."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from slf_common import pictures
from slf_common.pictures import PictureError, read_picture

GREY = pictures.BACKGROUND[0]


def scene(height: int = 24, width: int = 32) -> np.ndarray:
    """A smooth image without symmetries: uint8 [H, W, 3]."""
    down, across = np.mgrid[:height, :width]
    return np.stack(
        [across * 255 // width, down * 255 // height, (across + down) * 255 // (height + width)], -1
    ).astype(np.uint8)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize(
    "suffix, options", [(".jpg", {"quality": 95}), (".png", {}), (".webp", {"lossless": True}), (".tif", {})]
)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright_by_their_exif_orientation(tmp_path, suffix, options, orientation):
    """All eight orientations, including the mirrored ones."""
    upright = scene()
    stored = {
        1: upright, 2: upright[:, ::-1], 3: np.rot90(upright, 2), 4: upright[::-1], 5: upright.swapaxes(0, 1),
        6: np.rot90(upright), 7: np.rot90(upright, 2).swapaxes(0, 1), 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[pictures.ORIENTATION] = orientation
    path = tmp_path / f"a{suffix}"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, **options)
    got = read_picture(path)
    assert got.shape == upright.shape and got.dtype == np.uint8
    assert np.abs(got.astype(int) - upright).mean() < 3


# EXIF entries (tag, type, value) that Pillow can read but not write.
BAD_ENTRIES = {
    "struct.error": (0x0103, 4, 0xFFFFFFFF),
    "TypeError": (0x011A, 2, 0xFFFFFFFF),
    "ValueError": (0x8769, 6, 0xFFFFFFFF),
}


def broken_exif(orientation: int, bad: tuple[int, int, int]) -> bytes:
    """EXIF data with an orientation and a broken entry."""
    entries = struct.pack("<HHII", pictures.ORIENTATION, 3, 1, orientation) + struct.pack(
        "<HHII", bad[0], bad[1], 1, bad[2]
    )
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)


@pytest.mark.parametrize("bad", BAD_ENTRIES.values(), ids=BAD_ENTRIES)
def test_a_broken_exif_entry_is_ignored(tmp_path, bad):
    """The orientation next to it is still used."""
    upright, path = scene(), tmp_path / "a.jpg"
    Image.fromarray(np.ascontiguousarray(np.rot90(upright))).save(path, exif=broken_exif(6, bad), quality=95)
    assert np.abs(read_picture(path).astype(int) - upright).mean() < 3


GRADIENT = np.linspace(0, 1, 256)[None].repeat(4, 0)


@pytest.mark.parametrize(
    "values, suffix",
    [
        ((GRADIENT * 65535).astype(np.uint16), ".png"),
        ((GRADIENT * 65535).astype(np.uint16), ".tif"),
        ((GRADIENT * 65535).astype(">u2"), ".tif"),
        ((GRADIENT * 65535).astype(np.int32), ".tif"),
        (((GRADIENT - 0.5) * 2e9).astype(np.int32), ".tif"),
        (GRADIENT.astype(np.float32), ".tif"),
        ((GRADIENT * 255).astype(np.float32), ".tif"),
        ((GRADIENT * 1e6 - 5e5).astype(np.float32), ".tif"),
    ],
    ids=["16-bit PNG", "16-bit TIFF", "big-endian", "32-bit", "signed", "0 to 1", "0 to 255", "any float"],
)
def test_deep_grey_is_scaled_to_8_bits(tmp_path, values, suffix):
    """Greyscale of 16 or 32 bits, or floats, does not become white."""
    path = tmp_path / f"a{suffix}"
    Image.fromarray(values).save(path)
    got = read_picture(path)
    assert got.shape == (4, 256, 3)
    np.testing.assert_allclose(got[0, :, 0], np.arange(256), atol=1)


def test_constant_deep_grey_and_nan_are_read(tmp_path):
    for i, values in enumerate([np.full((4, 4), -7, np.int32), np.full((4, 4), np.nan, np.float32)]):
        Image.fromarray(values).save(tmp_path / f"{i}.tif")
        assert (read_picture(tmp_path / f"{i}.tif") == 0).all()


def half_transparent(mode: str) -> Image.Image:
    """Left half: an opaque colour; right half: bright transparent pixels."""
    grey = np.full((8, 16), 40, np.uint8)
    grey[:, 8:] = 255
    alpha = np.full((8, 16), 255, np.uint8)
    alpha[:, 8:] = 0
    if mode in ("LA", "RGBA"):
        bands = [Image.fromarray(grey)] * (len(mode) - 1) + [Image.fromarray(alpha)]
        return Image.merge(mode, bands)
    if mode == "I;16":
        return Image.fromarray(grey.astype(np.uint16) * 257)
    return Image.fromarray(grey).convert(mode)


@pytest.mark.parametrize(
    "mode, suffix, options",
    [
        ("RGBA", ".png", {}),
        ("RGBA", ".webp", {"lossless": True, "exact": True}),
        ("LA", ".png", {}),
        ("P", ".png", {"transparency": 255}),
        ("P", ".png", {"transparency": bytes([255] * 255 + [0])}),
        ("P", ".gif", {"transparency": 255}),
        ("L", ".png", {"transparency": 255}),
        ("RGB", ".png", {"transparency": (255, 255, 255)}),
        ("I;16", ".png", {}),
    ],
)
def test_colours_of_transparent_pixels_are_not_shown(tmp_path, mode, suffix, options):
    """Transparent pixels show the background, not their stored colour."""
    image, path = half_transparent(mode), tmp_path / f"a{suffix}"
    if mode == "P":  # index = grey level
        image = Image.fromarray(np.asarray(half_transparent("L")))
        image.putpalette(bytes(np.repeat(np.arange(256, dtype=np.uint8), 3)))
    if mode == "I;16":  # older Pillows cannot write this
        image.save(path)
        start, middle, end = path.read_bytes().partition(
            png_chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 8, 16, 0, 0, 0, 0))
        )
        path.write_bytes(start + middle + png_chunk(b"tRNS", b"\xff\xff") + end)
    else:
        image.save(path, **options)
    got = read_picture(path)
    assert (got[:, :8] == 40).all() and (got[:, 8:] == GREY).all()


def test_half_transparent_pixels_are_blended(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 128)).save(tmp_path / "a.png")
    np.testing.assert_allclose(read_picture(tmp_path / "a.png")[0, 0], (192, 64, 64), atol=1)


def test_other_modes_become_rgb(tmp_path):
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    red.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    red.convert("CMYK").save(tmp_path / "cmyk.tif")
    red.save(tmp_path / "ycbcr.jpg", quality=100)
    for path in tmp_path.iterdir():
        np.testing.assert_allclose(read_picture(path)[4, 4], (255, 0, 0), atol=8)
    Image.fromarray(np.eye(8, dtype=bool)).save(tmp_path / "bit.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "bit.png")[..., 0], 255 * np.eye(8, dtype=np.uint8))
    red.save(tmp_path / "a.gif", save_all=True, append_images=[Image.new("RGB", (8, 8), (0, 0, 255))])
    assert (read_picture(tmp_path / "a.gif") == (255, 0, 0)).all()  # the first frame


def test_a_colour_profile_is_converted_and_a_broken_one_ignored(tmp_path):
    image = Image.new("RGB", (8, 8), (200, 100, 50))
    swapped = Image.new("RGB", (8, 8), (50, 100, 200))
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    names = {bytes(profile[i : i + 4]): i for i in range(132, 132 + 12 * 20, 12)}
    red, blue = names[b"rXYZ"], names[b"bXYZ"]
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"  # in this colour space red is blue
    image.save(tmp_path / "a.png", icc_profile=bytes(profile))
    np.testing.assert_allclose(read_picture(tmp_path / "a.png"), np.asarray(swapped), atol=3)
    image.save(tmp_path / "a.png", icc_profile=bytes(profile[:200]))
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), np.asarray(image))


def samples() -> dict[str, bytes]:
    """One file of each format, with metadata that are easily broken."""
    exif, found = broken_exif(6, BAD_ENTRIES["struct.error"]), {}
    image = Image.fromarray(scene())
    clear = image.convert("RGBA")
    clear.putalpha(100)
    for name, picture, kind, options in [
        ("jpeg", image, "JPEG", {"exif": exif}),
        ("png", clear, "PNG", {"exif": exif[6:]}),
        ("palette", image.quantize(16), "PNG", {"transparency": 3}),
        ("webp", image, "WEBP", {"exif": exif}),
        ("gif", image.quantize(16), "GIF", {"transparency": 3}),
        ("tiff", image, "TIFF", {"compression": "tiff_lzw"}),
        ("tiff16", Image.fromarray(scene()[..., 0].astype(np.uint16)), "TIFF", {}),
        ("bmp", image, "BMP", {}),
    ]:
        file = io.BytesIO()
        picture.save(file, kind, **options)
        found[name] = file.getvalue()
    return found


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """The data truncated, or with some bytes changed, mostly in the headers near the beginning."""
    if rng.random() < 0.25:
        return data[: rng.integers(1, len(data))]
    broken = np.frombuffer(data, np.uint8).copy()
    end = len(broken) if rng.random() < 0.5 else min(120, len(broken))
    where = rng.integers(end, size=rng.integers(1, 8))
    broken[where] = rng.choice([0, 1, 127, 128, 255, rng.integers(256)], size=len(where))
    return broken.tobytes()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", samples())
def test_all_errors_of_pillow_become_picture_errors(tmp_path, name):
    """Among them struct.error, TypeError, ValueError, SyntaxError and RuntimeError."""
    rng, path, outcomes = np.random.default_rng(0), tmp_path / "a", set()
    data = samples()[name]
    for _ in range(150):
        path.write_bytes(damaged(data, rng))
        try:
            outcomes.add(read_picture(path).ndim)
        except PictureError as error:
            outcomes.add("refused")
            assert "\n" not in str(error) and "0x" not in str(error)
    assert outcomes == {3, "refused"}


def bomb(path: Path) -> None:
    """Writes a PNG whose header claims 100,000 x 100,000 pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(bytes(100))))


@pytest.mark.parametrize(
    "make, reason",
    [
        (Path.touch, "the file is empty"),
        (lambda path: path.write_text("not an image"), r"cannot be read \(UnidentifiedImageError\)"),
        (bomb, "DecompressionBombError"),
    ],
)
def test_the_error_names_the_reason(tmp_path, make, reason):
    make(tmp_path / "a.png")
    with pytest.raises(PictureError, match=reason):
        read_picture(tmp_path / "a.png")


def test_a_file_that_the_system_cannot_read_raises_the_systems_error(tmp_path):
    """A missing file or a folder is not a damaged image."""
    with pytest.raises(FileNotFoundError):
        read_picture(tmp_path / "a.png")
    with pytest.raises(IsADirectoryError):
        read_picture(tmp_path)


def test_an_error_outside_of_pillow_is_not_converted(tmp_path, monkeypatch):
    """It is a bug in this module."""
    Image.fromarray(GRADIENT.astype(np.float32)).save(tmp_path / "a.tif")
    monkeypatch.setattr(pictures, "_to_uint8", lambda values, mode: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        read_picture(tmp_path / "a.tif")
