"""Damaged files, whose decodable parts are used, and I/O errors, which are not the file's fault."""

import errno
import os
import pickle
import resource
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import pytest
from recordings import damage_packets, moving_frames, voice, write_clip, write_image, write_video, write_wav

from extract import media
from extract.dataset import run_chunks
from extract.media import MediaError
from extract.runners import THREADS
from slf_common.errors import UserError
from tfrecords.reader import Clips

POSITIONS = tuple(media.frame_position(i) for i in range(5))
QUICK = "--config.extract.extractors=pyaudioanalysis"


# Damage that FFmpeg can decode around.


def test_a_bad_sound_packet_is_skipped_and_counted(tmp_path):
    """The sound before and after the packet is decoded (fault 13)."""
    path = write_clip(tmp_path / "a.mp4")
    whole, lost = media.decode_audio(path), []
    first = 10
    damage_packets(path, "audio", [first, 15])
    decoded = media.decode_audio(path, lost=lost)
    assert len(lost) == 2 and all(reason.startswith("audio packet (") for reason in lost)
    assert len(whole) - len(decoded) == 2 * 1024  # samples of an AAC packet
    before = (first - 2) * 1024
    np.testing.assert_array_equal(decoded[:before], whole[:before])


ID3V1 = b"TAG" + b"Title".ljust(30, b"\0") + b"Artist".ljust(30, b"\0") + b"Album".ljust(30) + b"2001" + b"\0" * 31
LYRICS = b"LYRICSBEGIN" + b"some words " * 60 + b"000671LYRICS200"
APE = b"APETAGEX" + bytes([208, 7, 0, 0, 40, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 160]) + bytes(8) + b"\xff\xfb\x90" * 99


@pytest.mark.parametrize("tail", [ID3V1, APE, LYRICS, APE + ID3V1, LYRICS + ID3V1, b"\xff\xfb\x90\x64" + bytes(40)])
def test_trailing_bytes_of_an_mp3_cause_no_loss(tmp_path, tail):
    """Tags of old players and other trailing bytes do not make a clip fail (fault 13)."""
    path = write_video(tmp_path / "a.mp3", voice(1), codecs=("mp3", ""))
    whole = media.decode_audio(path)
    path.write_bytes(path.read_bytes() + tail)
    decoded = media.decode_audio(path)
    np.testing.assert_array_equal(decoded[: len(whole)], whole)
    assert len(decoded) - len(whole) < 2 * 1152  # samples of an MP3 frame


def test_a_truncated_file_is_decoded_as_far_as_it_goes(tmp_path):
    for name, codecs in [("a.mkv", ("aac", "mpeg4")), ("a.webm", ("libopus", "libvpx"))]:
        path = write_video(tmp_path / name, voice(2, 48_000), moving_frames(2), 48_000, codecs)
        whole = media.decode_audio(path)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) * 2 // 3])
        decoded = media.decode_audio(path)
        assert 0.2 < len(decoded) / len(whole) < 1
        assert len(list(media.decode_frames(path, POSITIONS))) == 5


def test_each_frame_position_is_decoded_independently(tmp_path):
    """Damage around the middle of a video affects no other position (fault 13)."""
    path, lost = write_video(tmp_path / "a.mp4", voice(3), moving_frames(3)), []
    whole = list(media.decode_frames(path, POSITIONS))
    count = damage_packets(path, "video", range(13, 18))
    assert count == 30
    frames = list(media.decode_frames(path, POSITIONS, lost))
    assert len(frames) == 5 and lost and lost[0].startswith("video packet (")
    np.testing.assert_array_equal(frames[1], whole[1])  # at a quarter


def test_the_last_frame_before_the_damage_is_used_if_none_follows(tmp_path):
    path = write_video(tmp_path / "a.mp4", frames=moving_frames(3))
    first = next(media.decode_frames(path, (0.0,)))
    damage_packets(path, "video", range(1, 30))
    assert all((frame == first).all() for frame in media.decode_frames(path, POSITIONS))


def test_if_nothing_decodes_the_reason_is_reported(tmp_path):
    path = write_clip(tmp_path / "a.mp4")
    damage_packets(path, "audio", range(25))
    damage_packets(path, "video", range(15))
    with pytest.raises(MediaError, match="no part of the sound is usable: audio packet .Invalid data"):
        media.decode_audio(path)
    with pytest.raises(MediaError, match="no part of the video is usable: video packet .Invalid data"):
        next(media.decode_frames(path))


def test_a_sound_may_change_its_format_midway(tmp_path):
    """Sample rate and channels may change from one packet to the next, as in radio recordings (fault 13)."""
    mono = write_video(tmp_path / "a.aac", voice(1, 44_100), rate=44_100)
    stereo = write_video(tmp_path / "b.aac", voice(1, 32_000, 200, 2), rate=32_000)
    both = tmp_path / "both.aac"
    both.write_bytes(mono.read_bytes() + stereo.read_bytes())
    decoded, first, second = (media.decode_audio(path) for path in (both, mono, stereo))
    assert len(decoded) == pytest.approx(len(first) + len(second), abs=50)
    np.testing.assert_array_equal(decoded[:12_000], first[:12_000])
    np.testing.assert_allclose(decoded[-8_000:].std(), second[-8_000:].std(), rtol=0.1)


SOURCES = {
    "a.mp4": ("aac", "mpeg4"),
    "a.mkv": ("mp3", "h264"),
    "a.webm": ("libopus", "libvpx"),
    "a.avi": ("mp3", "mpeg4"),
    "a.mp3": ("mp3", None),
    "a.flac": ("flac", None),
    "a.wav": (None, None),
}


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Returns the data truncated, or with some bytes changed, in half of the cases near the beginning."""
    if rng.random() < 0.2:
        return data[: rng.integers(1, len(data))]
    broken = np.frombuffer(data, np.uint8).copy()
    where = rng.integers(len(data) if rng.random() < 0.5 else min(400, len(data)), size=rng.integers(1, 12))
    broken[where] = rng.choice([0, 1, 127, 128, 255, rng.integers(256)], size=len(where))
    return broken.tobytes()


@pytest.mark.parametrize("name", SOURCES)
def test_a_file_damaged_anywhere_is_decoded_or_rejected(tmp_path, name):
    """Any error of PyAV is a failure of the file, not of the machine (fault 11)."""
    sound, video = SOURCES[name]
    path, rng, outcomes = tmp_path / name, np.random.default_rng(0), set()
    if sound is None:
        write_wav(path, voice(0.4))
    elif sound == "flac":
        write_flac(path, voice(0.4))
    else:
        write_video(path, voice(0.4, 48_000), moving_frames(0.4) if video else None, 48_000, (sound, video))
    data = path.read_bytes()
    decoders = [media.decode_audio, lambda path: list(media.decode_frames(path, POSITIONS[:2]))]
    for _ in range(25):
        path.write_bytes(damaged(data, rng))
        for decode in decoders[: 2 if video else 1]:
            try:
                decode(path)
                outcomes.add("decoded")
            except MediaError as error:
                outcomes.add("rejected")
                assert "\n" not in str(error) and " at 0x" not in str(error)
    assert outcomes == {"decoded", "rejected"} or name == "a.mp3" and outcomes == {"decoded"}


def write_flac(path: Path, sound: np.ndarray) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray((sound * 32767).astype(np.int16), format="s16", layout="mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("part, decode", [("_levels", media.decode_audio), ("_rotate", media.decode_frames)])
def test_a_bug_in_this_package_is_not_a_media_error(tmp_path, monkeypatch, part, decode):
    """Only errors of decoders are failures of the clip (fault 11)."""
    path = write_clip(tmp_path / "a.mp4")
    monkeypatch.setattr(media, part, lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(decode(path))


def test_losses_are_listed_and_the_clip_is_used(tmp_path, extract, capsys):
    """`losses.csv` lists the skipped parts of each clip (fault 13)."""
    videos, out = tmp_path / "videos", tmp_path / "data"
    for name in ("whole", "torn"):
        write_clip(videos / "a" / f"{name}.mp4")
    damage_packets(videos / "a" / "torn.mp4", "audio", [10, 12, 14])
    (videos / "people.csv").write_text("speaker_id,split\na,train\n")
    extract("--videos", videos, "--out", out, QUICK)
    assert len(Clips(out)) == 2
    assert (out / "losses.csv").read_text().splitlines() == [
        "clip,reason",
        "a/torn,3 x audio packet (Invalid data found when processing input)",
    ]
    assert "1 of them are partly damaged and used without the damaged parts" in capsys.readouterr().out


# I/O errors.


class FaultyPath(type(Path())):
    """A file on a file system that fails when the file is opened (`after=-1`) or after `after` bytes are read."""

    number, after = errno.EIO, 0

    def open(self, *arguments, **options):
        if self.after < 0:
            raise OSError(self.number, os.strerror(self.number))
        return FaultyFile(self, super().open(*arguments, **options))


class FaultyFile:
    def __init__(self, path: FaultyPath, file) -> None:
        self._path, self._file = path, file

    def read(self, size: int = -1) -> bytes:
        if self._file.tell() >= self._path.after:
            raise OSError(self._path.number, os.strerror(self._path.number))
        return self._file.read(size)

    def __getattr__(self, name: str):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self._file.close()


ERRORS = [
    "EIO",
    "ESTALE",
    "EMFILE",
    "ENFILE",
    "ENOMEM",
    "EACCES",
    "EPERM",
    "ENETDOWN",
    "ENOTCONN",
    "ETIMEDOUT",
    "ENODEV",
]


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("after", [-1, 0, 40_000], ids=["opening", "first read", "midway"])
def test_an_io_error_is_not_a_media_error(tmp_path, name, after):
    """It is not a `MediaError`, whenever it occurs, and can be pickled (fault 6)."""
    write_wav(tmp_path / "a.wav", voice(4))
    path = FaultyPath(tmp_path / "a.wav")
    path.number, path.after = getattr(errno, name), after
    with pytest.raises(UserError, match=f"a.wav: cannot be read .{os.strerror(path.number)}") as error:
        media.decode_audio(path)
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_an_io_error_while_seeking_is_not_a_media_error(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 256, (30, 96, 128, 3)).astype(np.uint8)
    path = FaultyPath(write_video(tmp_path / name, frames=noise))
    path.after = path.stat().st_size // 2
    with pytest.raises(UserError, match="Input/output error"):
        list(media.decode_frames(path, (0.9,)))


@contextmanager
def no_files_left():
    """Inside, this process cannot open another file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_too_many_open_files_are_not_a_media_error(tmp_path):
    """For sound, frames and images (fault 6)."""
    path, image = write_clip(tmp_path / "a.mp4"), write_image(tmp_path / "a.png")
    for decode in (media.decode_audio, lambda _: next(media.decode_frames(path)), lambda _: media.read_image(image)):
        decode(path)  # loads modules at the first use
        with no_files_left(), pytest.raises(UserError, match="Too many open files"):
            decode(path)


def test_a_file_that_disappeared_is_not_a_media_error(tmp_path):
    """It existed when the folder was listed: a disk may have been unmounted (fault 6)."""
    (tmp_path / "link.mp4").symlink_to("nowhere")
    for name in ("gone.mp4", "link.mp4", "gone/a.mp4"):
        for decode in (media.decode_audio, lambda path: next(media.decode_frames(path)), media.read_image):
            with pytest.raises(UserError, match=f"{name}: cannot be read .No such file"):
                decode(tmp_path / name)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_unmounted_disk_stops_the_run_and_the_next_run_resumes(
    tmp_path, extract, people_folder, workers, monkeypatch
):
    """A disk unmounted after the clips were listed gives one line and no failures; once it is back, the same command
    completes the dataset (fault 6).
    """
    videos, mount, out = tmp_path / "videos", tmp_path / "mount", tmp_path / "data"
    mount.mkdir()
    for source in sorted(people_folder.glob("*/*/*.mp4")):
        target = videos / source.relative_to(people_folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(source)
    lost, beyond = videos / "id2" / "abc" / "00001.mp4", mount / "1.mp4"
    beyond.symlink_to(lost.readlink())
    lost.unlink()
    lost.symlink_to(beyond)
    (videos / "people.csv").write_bytes((people_folder / "people.csv").read_bytes())

    def unmount_first(*arguments):
        beyond.unlink()
        return run_chunks(*arguments)

    threads = [os.environ.get(name) for name in THREADS]
    with monkeypatch.context() as patch, pytest.raises(UserError, match="id2/abc/00001.mp4: cannot be read") as error:
        patch.setattr("extract.dataset.run_chunks", unmount_first)
        extract("--videos", videos, "--out", out, QUICK, f"--config.extract.workers={workers}")
    assert "\n" not in str(error.value)
    assert [os.environ.get(name) for name in THREADS] == threads  # the workers' limits are theirs alone
    assert not (out / "failures.csv").exists() and not (out / "metadata.json").exists()
    beyond.symlink_to(people_folder / "id2" / "abc" / "00001.mp4")
    extract("--videos", videos, "--out", out, QUICK)
    assert len(Clips(out)) == 6 and (out / "failures.csv").read_text() == "clip,reason\n"
