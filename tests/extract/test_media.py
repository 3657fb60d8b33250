"""Decoding: sound and frames of clips, and the errors for unusable ones."""

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from recordings import FPS, moving_frames, set_matrix, voice, write_clip, write_image, write_video, write_wav

from extract import media
from extract.clips import find_clips
from extract.media import MediaError


def tone(hertz: float, seconds: float, rate: int) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate, dtype=np.float32)


def bar_position(frame: np.ndarray) -> float:
    """Returns the position of the bright bar of `moving_frames`, from 0 to 1."""
    columns = frame[..., 0].mean(0)
    return float(np.argmax(np.convolve(columns, np.ones(8), "valid")) / (frame.shape[1] - 8))


@pytest.mark.parametrize("rate, channels", [(16_000, 1), (44_100, 2), (8_000, 1), (48_000, 2)])
def test_sound_becomes_16_khz_mono_of_the_same_pitch_and_level(tmp_path, rate, channels):
    wave = np.tile(tone(440, 2, rate), (channels, 1))
    sound = media.decode_audio(write_wav(tmp_path / "a.wav", wave, rate))
    assert sound.dtype == np.float32 and abs(len(sound) - 32_000) < 100
    assert np.argmax(np.abs(np.fft.rfft(sound[:32_000], 32_000))) / 2 == pytest.approx(440, abs=1)
    assert np.sqrt(np.mean(sound**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.02)


def test_channels_are_averaged(tmp_path):
    wave = np.stack([tone(440, 1, 16_000), np.zeros(16_000, np.float32)])
    sound = media.decode_audio(write_wav(tmp_path / "a.wav", wave))
    assert np.abs(sound).max() == pytest.approx(0.25, abs=0.01)


def test_only_the_beginning_of_a_long_sound_is_decoded(tmp_path):
    path = write_wav(tmp_path / "long.wav", voice(30))
    sound = media.decode_audio(path)
    assert len(sound) == media.CLIP_SAMPLES
    np.testing.assert_array_equal(media.decode_audio(path, seconds=2), sound[:32_000])
    np.testing.assert_array_equal(media.fit_audio(sound), sound)


def test_a_short_sound_is_repeated_to_24_seconds():
    wave = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    fitted = media.fit_audio(wave)
    assert fitted.shape == (384_000,) and fitted.dtype == np.float32
    for start in (0, 100_000, 200_000):
        np.testing.assert_array_equal(fitted[start : start + 100_000], wave)
    np.testing.assert_array_equal(fitted[300_000:], wave[:84_000])


@pytest.mark.parametrize(
    "name, codecs",
    [
        ("a.mp4", ("aac", "mpeg4")),
        ("a.mkv", ("aac", "h264")),
        ("a.avi", ("mp3", "mpeg4")),
        ("a.webm", ("libopus", "libvpx")),
    ],
)
def test_frames_are_decoded_at_the_given_positions(tmp_path, name, codecs):
    path = write_video(tmp_path / name, voice(3, rate=48_000), moving_frames(3), rate=48_000, codecs=codecs)
    frames = list(media.decode_frames(path, (0.0, 0.5, 1.0)))
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 3 and frames[0].dtype == np.uint8
    assert [bar_position(frame) for frame in frames] == pytest.approx([0, 0.5, 1], abs=0.1)
    np.testing.assert_array_equal(next(media.decode_frames(path)), frames[1])


def test_a_video_without_a_duration_has_a_middle(tmp_path):
    """As recorded by browsers: written to a stream that cannot seek back to fill in the duration."""
    whole = write_video(tmp_path / "whole.mkv", frames=moving_frames(2))
    with (tmp_path / "live.mkv").open("wb") as file, av.open(str(whole)) as source:
        pipe = type("Pipe", (), {"write": staticmethod(file.write)})()
        with av.open(pipe, "w", format="matroska") as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(source.streams.video[0]):
                if packet.dts is not None:
                    packet.stream = stream
                    target.mux(packet)
    with av.open(str(tmp_path / "live.mkv")) as container:
        assert container.duration is None and container.streams.video[0].duration is None
    assert bar_position(next(media.decode_frames(tmp_path / "live.mkv"))) == pytest.approx(0.5, abs=0.1)


ROTATIONS = {
    "upright": (1, 0, 0, 1),
    "clockwise": (0, 1, -1, 0),
    "upside down": (-1, 0, 0, -1),
    "anticlockwise": (0, -1, 1, 0),
    "mirrored": (-1, 0, 0, 1),
    "flipped": (1, 0, 0, -1),
    "transposed": (0, 1, 1, 0),
    "transposed the other way": (0, -1, -1, 0),
}


@pytest.mark.parametrize("matrix", ROTATIONS.values(), ids=ROTATIONS)
def test_a_rotated_or_flipped_video_becomes_upright(tmp_path, matrix):
    """Each of the eight display matrices moves every pixel to the right position (fault 12)."""
    path = write_clip(tmp_path / "phone.mp4")
    stored = next(media.decode_frames(path))
    down, across = np.indices(stored.shape[:2])
    a, b, c, d = matrix
    x, y = a * across + c * down, b * across + d * down
    expected = np.zeros((np.ptp(y) + 1, np.ptp(x) + 1, 3), np.uint8)
    expected[y - y.min(), x - x.min()] = stored
    np.testing.assert_array_equal(next(media.decode_frames(set_matrix(path, matrix))), expected)


def disc(pixel: Fraction) -> np.ndarray:
    """Returns a disc, stored with the pixel aspect ratio `pixel` (width by height): uint8 [5, 96, 96, 3]."""
    down, across = np.mgrid[:96, :96] - 47.5
    inside = (across * float(pixel)) ** 2 + down**2 < 20**2
    return np.broadcast_to(np.where(inside, 230, 30).astype(np.uint8)[None, ..., None], (5, 96, 96, 3)).copy()


@pytest.mark.parametrize(
    "name, codec, rotation",
    [
        ("a.mp4", "mpeg4", "upright"),
        ("a.mkv", "h264", "upright"),
        ("a.avi", "mpeg4", "upright"),
        ("a.mp4", "h264", "clockwise"),
        ("a.mp4", "h264", "mirrored"),
    ],
)
@pytest.mark.parametrize("pixel", [Fraction(4, 3), Fraction(1, 2)])
def test_a_circle_stays_a_circle(tmp_path, name, codec, rotation, pixel):
    """The sample aspect ratio is respected, also in rotated videos (fault 12)."""
    path = write_video(tmp_path / name, frames=disc(pixel), codecs=("aac", codec), pixel=pixel)
    if rotation != "upright":
        set_matrix(path, ROTATIONS[rotation])
    image = next(media.decode_frames(path))
    inside = image[..., 0] > 130
    wide, high = np.ptp(np.flatnonzero(inside.any(0))), np.ptp(np.flatnonzero(inside.any(1)))
    assert wide == pytest.approx(high, abs=2)
    assert image.shape[1] / image.shape[0] == pytest.approx(
        float(1 / pixel if rotation == "clockwise" else pixel), 0.01
    )


def test_a_sample_aspect_ratio_from_a_damaged_header_is_ignored(tmp_path):
    path = write_video(tmp_path / "a.mkv", frames=disc(Fraction(1)), codecs=("aac", "mpeg4"), pixel=Fraction(1, 250))
    assert next(media.decode_frames(path)).shape == (96, 96, 3)


def test_extreme_clips_are_usable(tmp_path):
    short = write_video(tmp_path / "short.mp4", voice(0.1), moving_frames(3))
    assert 1_000 < len(media.decode_audio(short)) < 4_000
    single = write_video(tmp_path / "single.mp4", voice(2), moving_frames(1 / FPS))
    assert [frame.shape for frame in media.decode_frames(single, (0, 1))] == [(48, 64, 3)] * 2
    odd = write_clip(tmp_path / 'it\'s a "test" $(x) %d \u00fc\u4f60:1.mp4')
    assert media.decode_audio(odd).any() and list(media.decode_frames(odd))


def empty(path: Path) -> None:
    path.touch()


def text(path: Path) -> None:
    path.write_text("this is not a video\n" * 100)


def playlist(path: Path) -> None:
    path.write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/secret.ts\n#EXT-X-ENDLIST\n")


def truncated(path: Path) -> None:
    write_clip(path)
    path.write_bytes(path.read_bytes()[:-2_000])


def sound_only(path: Path) -> None:
    write_video(path, sound=voice(1))


def picture_only(path: Path) -> None:
    write_video(path, frames=moving_frames(1))


def silent(path: Path) -> None:
    write_wav(path.with_suffix(".wav"), np.zeros((1, 16_000), np.float32)).rename(path)


def headless(path: Path) -> None:
    write_wav(path.with_suffix(".wav"), np.zeros((1, 0), np.float32)).rename(path)


@pytest.mark.parametrize(
    "make, reason",
    [
        (empty, "the file is empty"),
        (text, "not a media file"),
        (playlist, "not a media file"),
        (truncated, "damaged"),
        (picture_only, "no audio stream"),
        (silent, "silent"),
        (headless, "no samples"),
        (Path.mkdir, "not a regular file"),
        (lambda path: path.symlink_to(path), "cannot be read .Too many levels"),
    ],
)
def test_an_unusable_sound_is_reported_with_the_reason(tmp_path, make, reason):
    path = tmp_path / "broken.mp4"
    make(path)
    with pytest.raises(MediaError, match=reason):
        media.decode_audio(path)


@pytest.mark.parametrize(
    "make, reason", [(empty, "empty"), (text, "not a media file"), (sound_only, "no video stream")]
)
def test_an_unusable_video_is_reported_with_the_reason(tmp_path, make, reason):
    path = tmp_path / "broken.mp4"
    make(path)
    with pytest.raises(MediaError, match=reason):
        next(media.decode_frames(path))


def test_a_file_name_need_not_be_utf8(tmp_path):
    good = write_clip(tmp_path / "good.mp4")
    expected = media.decode_audio(good)
    os.rename(good, os.fsencode(tmp_path) + b"/b\xffd.mp4")
    (clip,) = find_clips(tmp_path).clips
    assert clip.clip_id == "b\\xffd"
    np.testing.assert_array_equal(media.decode_audio(clip.path), expected)
    assert next(media.face_frames(clip)).shape == (48, 64, 3)


def test_the_face_of_a_sound_is_the_image_next_to_it(tmp_path):
    write_wav(tmp_path / "a.wav", voice(1))
    write_image(tmp_path / "a.png")
    write_wav(tmp_path / "b.wav", voice(1))
    write_wav(tmp_path / "c.wav", voice(1))
    (tmp_path / "c.jpg").write_bytes(b"\xff\xd8\xff no picture")
    good, bare, broken = find_clips(tmp_path).clips
    assert next(media.face_frames(good)).shape == (60, 80, 3)
    with pytest.raises(MediaError, match="no image of the same name"):
        next(media.face_frames(bare))
    with pytest.raises(MediaError, match="image cannot be read"):
        next(media.face_frames(broken))


def test_frames_are_tried_from_the_middle_outwards(tmp_path):
    assert [media.frame_position(i) for i in range(7)] == [1 / 2, 1 / 4, 3 / 4, 1 / 8, 5 / 8, 3 / 8, 7 / 8]
    (clip,) = find_clips(write_clip(tmp_path / "a.mp4", seconds=4).parent).clips
    positions = [bar_position(frame) for frame in media.face_frames(clip, 3)]
    np.testing.assert_allclose(positions, [1 / 2, 1 / 4, 3 / 4], atol=0.05)


def test_with_a_variable_frame_rate_frames_are_found_by_time(tmp_path):
    frames, path = moving_frames(2), tmp_path / "vfr.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=1000)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for number, pixels in enumerate(frames):  # the first half in 0.5 s, the rest in 1.5 s
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = (50 * number if number < 10 else 500 + 150 * (number - 10)), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    middle = bar_position(next(media.decode_frames(path)))
    assert middle == pytest.approx((10 + (1.0 - 0.5) / 0.15) / 19, abs=0.06)


def test_surround_sound_becomes_mono(tmp_path):
    sound = np.tile(tone(440, 1, 48_000), (6, 1))
    mono = media.decode_audio(write_wav(tmp_path / "surround.wav", sound, 48_000))
    assert np.argmax(np.abs(np.fft.rfft(mono[:16_000]))) == pytest.approx(440, abs=1)
    assert 0.1 < np.abs(mono).max() <= 1


COLOURS = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200], [220, 170, 140], [128, 128, 128], [240, 240, 240]])


@pytest.mark.parametrize("kr, kb, space", [(0.2126, 0.0722, 1), (0.299, 0.114, 6)], ids=["BT.709", "BT.601"])
@pytest.mark.parametrize("full", [False, True], ids=["limited range", "full range"])
def test_colours_are_decoded_correctly(tmp_path, kr, kb, space, full):
    """Each matrix and range tagged in the file; PyAV before 17 assumed BT.601 for all (fault 15)."""
    red, green, blue = COLOURS.T / 255
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    planes = [luma, (blue - luma) / (2 - 2 * kb), (red - luma) / (2 - 2 * kr)]
    scales = [255, 255, 255] if full else [219, 224, 224]
    offsets = [0, 128, 128] if full else [16, 128, 128]
    values = [np.round(p * s + o).astype(np.uint8) for p, s, o in zip(planes, scales, offsets, strict=True)]
    y, u, v = (np.repeat(np.repeat(each[None], 8, 0), 8, 1) for each in values)  # 8x8 pixels of each colour
    pixels = np.concatenate([part.reshape(-1, 48) for part in (np.tile(y, (4, 1)), *(half(c) for c in (u, v)))])
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = space, 2 if full else 1
        frame = av.VideoFrame.from_ndarray(pixels, format="yuv420p")
        frame.colorspace, frame.color_range = space, 2 if full else 1
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    image = next(media.decode_frames(path))
    np.testing.assert_allclose(image[16, 4::8], COLOURS, atol=3)


def half(plane: np.ndarray) -> np.ndarray:
    """Downsamples a chroma plane of [32, 48] pixels by 2."""
    return np.tile(plane, (4, 1))[::2, ::2]
