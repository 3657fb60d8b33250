"""The level below which a sound is silent, and the choice of the channel."""

from pathlib import Path

import av
import numpy as np
import pytest
from recordings import voice, write_video, write_wav

from extract import media
from extract.media import MediaError

RATE = media.SAMPLE_RATE


def loudness(wave: np.ndarray, decibels: float) -> np.ndarray:
    """Scales the wave to a level in dBFS (RMS)."""
    return wave * np.float32(10 ** (decibels / 20) / wave.std())


def write_floats(path: Path, sound: np.ndarray) -> Path:
    """Writes a WAV of float samples [1, n], unscaled, in several packets."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_f32le", rate=RATE, layout="mono")
        for start in range(0, sound.shape[1], 800):
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound[:, start : start + 800]), "flt", "mono")
            frame.sample_rate, frame.pts = RATE, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_surround(path: Path, sound: np.ndarray) -> Path:
    """Writes lossless 5.1 sound: front left, right, centre, LFE, back left, right."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=RATE, layout="5.1")
        values = np.ascontiguousarray((sound.T * 32767).astype(np.int16)).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(values, format="s16", layout="5.1")
        frame.sample_rate = RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("decibels", [-120, -80, -66])
@pytest.mark.parametrize("name, codec", [("a.mp4", "aac"), ("a.wav", "wav"), ("a.webm", "libopus"), ("a.mp3", "mp3")])
def test_near_silence_is_rejected(tmp_path, name, codec, decibels):
    """Noise of codecs and sound cards far below any voice (fault 14)."""
    noise = loudness(np.random.default_rng(0).normal(size=(1, 2 * 48_000)).astype(np.float32), decibels)
    if codec == "wav":
        write_wav(tmp_path / name, noise, 48_000)
    else:
        write_video(tmp_path / name, noise, rate=48_000, codecs=(codec, ""))
    with pytest.raises(MediaError, match=r"silent throughout \(loudest 0.1 s: -.* dBFS\)"):
        media.decode_audio(tmp_path / name)


def test_a_quiet_voice_is_accepted(tmp_path):
    quiet = loudness(voice(1), -55)
    assert media.decode_audio(write_wav(tmp_path / "a.wav", quiet)).std() == pytest.approx(10 ** (-55 / 20), rel=0.05)
    short = np.concatenate([np.zeros((1, 5 * RATE), np.float32), voice(0.3), np.zeros((1, 5 * RATE), np.float32)], 1)
    assert len(media.decode_audio(write_wav(tmp_path / "b.wav", short))) == round(10.3 * RATE)


def test_the_duration_of_the_silence_is_reported(tmp_path):
    """25 s of silence before a voice are not "silent throughout": only 24 s are decoded (fault 14)."""
    silence = np.zeros((1, 25 * RATE), np.float32)
    path = write_wav(tmp_path / "a.wav", np.concatenate([silence, voice(2)], 1))
    with pytest.raises(MediaError, match=r"silent in its first 24 s \(loudest 0.1 s: -inf dBFS\)"):
        media.decode_audio(path)
    with pytest.raises(MediaError, match="silent throughout"):
        media.decode_audio(write_wav(tmp_path / "b.wav", silence[:, : 2 * RATE]))


@pytest.mark.parametrize("level", [0.3, -0.9])
def test_a_constant_is_silent(tmp_path, level):
    """A DC offset is not sound (fault 14)."""
    with pytest.raises(MediaError, match="silent"):
        media.decode_audio(write_wav(tmp_path / "a.wav", np.full((1, 48_000), level, np.float32), 48_000))


@pytest.mark.parametrize("name, codec", [("a.wav", "wav"), ("a.mp4", "aac"), ("a.mp3", "mp3"), ("a.webm", "libopus")])
@pytest.mark.parametrize("gain", [-1.0, -0.97])
def test_the_loudest_of_cancelling_channels_is_used(tmp_path, name, codec, gain):
    """With one channel inverted, a channel is used, not the residual of the average (fault 14)."""
    left = voice(1, 48_000)
    sound, path = np.concatenate([left, np.float32(gain) * left]), tmp_path / name
    if codec == "wav":
        write_wav(path, sound, 48_000)
    else:
        write_video(path, sound, rate=48_000, codecs=(codec, ""))
    decoded = media.decode_audio(path)
    assert decoded.std() == pytest.approx(left.std(), rel=0.15)
    if codec == "wav":
        np.testing.assert_array_equal(decoded, media.decode_audio(write_wav(tmp_path / "left.wav", left, 48_000)))


def test_one_of_cancelling_surround_channels_is_used(tmp_path):
    sound = np.zeros((6, RATE), np.float32)
    sound[0], sound[1] = voice(1)[0], -voice(1)[0]
    decoded = media.decode_audio(write_surround(tmp_path / "a.wav", sound))
    assert decoded.std() == pytest.approx(voice(1).std(), rel=0.05)


@pytest.mark.parametrize("write", [write_surround, write_wav], ids=["named channels", "unnamed"])
def test_the_low_frequency_channel_is_ignored(tmp_path, write):
    """FFmpeg leaves LFE out of the average, and so does the choice of the loudest channel."""
    sound = np.zeros((6, RATE), np.float32)
    sound[3] = voice(1)[0]
    with pytest.raises(MediaError, match="silent"):
        media.decode_audio(write(tmp_path / "a.wav", sound))
    sound[0], sound[3] = 0.1 * voice(1, pitch=200)[0], 0.9 * np.sin(np.arange(RATE) / 40)
    decoded = media.decode_audio(write(tmp_path / "b.wav", sound))
    assert decoded.std() < 0.05


@pytest.mark.parametrize("other", [0.0, 0.5, -0.5, 1.0])
def test_stereo_that_does_not_cancel_is_averaged_as_by_ffmpeg(tmp_path, other):
    """The average is used wherever it is valid."""
    left = voice(1)
    sound = np.concatenate([left, np.float32(other) * left + 0.1 * voice(1, pitch=210)])
    path = write_wav(tmp_path / "a.wav", sound)
    with av.open(str(path)) as container:
        resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
        frames = [part for frame in container.decode(audio=0) for part in resampler.resample(frame)]
        frames += resampler.resample(None)
    expected = np.concatenate([frame.to_ndarray()[0] for frame in frames]).astype(np.float32) / 32768
    np.testing.assert_array_equal(media.decode_audio(path), expected)


def test_non_finite_samples_are_skipped_and_counted(tmp_path):
    """NaN and infinite samples are damage, not full-scale noise (faults 13 and 14)."""
    sound, lost = voice(1), []
    sound[0, 4_000:4_010], sound[0, 9_000] = np.nan, np.inf
    decoded = media.decode_audio(write_floats(tmp_path / "a.wav", sound), lost=lost)
    assert 0 < len(lost) < 5 and set(lost) == {"audio frame with NaN or infinite samples"}
    assert RATE * 0.7 < len(decoded) < RATE and np.abs(decoded).max() < 0.99
    with pytest.raises(MediaError, match="NaN or infinite"):
        media.decode_audio(write_floats(tmp_path / "b.wav", np.full((1, RATE), np.nan, np.float32)))
