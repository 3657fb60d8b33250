"""The extractors without weights: shapes, values, determinism; the registry."""

import dataclasses
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from recordings import voice

from extract.extractors import registry
from extract.extractors.mel import mel_filters, spectrum
from extract.extractors.values import storable
from extract.librosa_cache import import_librosa
from extract.media import CLIP_SAMPLES, fit_audio
from extract.talkers.identity import draw_identity
from extract.talkers.population import make_clip
from slf_common.errors import UserError
from tfrecords.schema import AUDIO_CONSTITUENTS

ROOT = Path(__file__).parents[2]
NAMES = ("pyaudioanalysis", "mel")  # those without weights


def load(*names):
    return registry.load({"extractors": names})


FLOOR = np.log(1e-10)


@pytest.fixture(scope="module")
def loaded():
    return {part.constituent.name: part for part in load(*NAMES)}


@pytest.fixture(scope="module")
def waves():
    return np.stack([fit_audio(voice(5 + pitch / 100, pitch=pitch)[0]) for pitch in (90, 150, 220)])


@pytest.mark.parametrize("name", NAMES)
def test_the_constituent_matches_the_paper(loaded, waves, name):
    constituent = loaded[name].constituent
    (paper,) = [part for part in AUDIO_CONSTITUENTS if part.name == name]
    assert dataclasses.replace(constituent, extractor="", windows=paper.windows) == paper
    assert constituent.extractor.split()[-1][0].isdigit() and constituent.windows
    values = loaded[name](waves)
    assert values.dtype == np.float32 and values.shape == (3, constituent.rows, constituent.width)
    assert np.isfinite(values).all()
    # float16 keeps three significant digits.
    np.testing.assert_allclose(values.astype(np.float16), values, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_equals_single_clips_and_is_deterministic(loaded, waves, name):
    batch = loaded[name](waves)
    np.testing.assert_array_equal(batch, np.concatenate([loaded[name](wave[None]) for wave in waves]))
    np.testing.assert_array_equal(batch, load(name)[0](waves))
    assert not np.array_equal(batch[0], batch[1])


DEGENERATE = {
    "silence": np.zeros(CLIP_SAMPLES),
    "constant": np.ones(CLIP_SAMPLES),
    "tiny": np.full(CLIP_SAMPLES, 1e-30),
    "full": np.resize([1, -1], CLIP_SAMPLES),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wave", DEGENERATE.values(), ids=DEGENERATE)
def test_degenerate_sounds_give_storable_values(loaded, name, wave):
    values = storable(loaded[name](wave[None].astype(np.float32)))
    assert np.isfinite(values.astype(np.float16)).all()


@pytest.mark.parametrize("bands, window, hop", [(128, 1024, 576), (40, 400, 160)], ids=["mel", "ge2e"])
def test_spectra_and_mel_filters_equal_librosas(waves, bands, window, hop):
    librosa = import_librosa()
    reference = librosa.stft(waves[0], n_fft=window, hop_length=hop, center=False)
    np.testing.assert_array_equal(spectrum(waves[0], window, hop), reference.T)
    np.testing.assert_array_equal(
        mel_filters(bands, window), librosa.filters.mel(sr=16_000, n_fft=window, n_mels=bands)
    )


def test_mel_covers_every_sample(loaded):
    moments = [0, 1, 500, 576, 191_999, 200_000, CLIP_SAMPLES - 577, CLIP_SAMPLES - 2, CLIP_SAMPLES - 1]
    moments += list(np.random.default_rng(0).integers(CLIP_SAMPLES, size=10))
    for moment in moments:
        clicks = np.zeros((1, CLIP_SAMPLES), np.float32)
        clicks[0, moment] = 1
        frames = loaded["mel"](clicks).reshape(666, 128)
        active = np.flatnonzero((frames > FLOOR + 1).all(1))
        assert 1 <= len(active) <= 2
        assert np.abs(active * 576 + 480 - moment).max() <= 512


def test_mel_rows_are_six_consecutive_frames_and_bands_rise_with_pitch(loaded):
    time = np.arange(CLIP_SAMPLES) / 16_000
    sweep = np.sin(2 * np.pi * (200 * time + 100 * time**2)).astype(np.float32)  # from 200 to 5000 Hz
    loudest = loaded["mel"](sweep[None])[0].reshape(111 * 6, 128).argmax(1)
    assert (np.diff(loudest) >= 0).all() and loudest[0] < 15 and 95 < loudest[-1] < 128


def test_mel_scales_with_the_level(loaded, waves):
    louder = loaded["mel"](2 * waves) - loaded["mel"](waves)
    np.testing.assert_allclose(louder, np.log(4), atol=1e-3)


def test_pyaudioanalysis_reflects_pitch_and_changes(loaded):
    time = np.arange(CLIP_SAMPLES) / 16_000
    low, high = (loaded["pyaudioanalysis"](np.sin(2 * np.pi * f * time)[None])[0] for f in (200, 2000))
    # Zero crossings: two a period, and no change from window to window in a steady tone.
    np.testing.assert_allclose(low[:, 0], 2 * 200 / 16_000, rtol=0.02)
    np.testing.assert_allclose(high[:, 0], 2 * 2000 / 16_000, rtol=0.02)
    np.testing.assert_allclose(low[1:, 34:36], np.diff(low[:, :2], axis=0), atol=1e-6)


NOISE = np.random.default_rng(0).normal(0, 1, CLIP_SAMPLES)
SOUNDS = {
    "talker": fit_audio(make_clip(draw_identity(0, 7), 1)[1]),
    "short": fit_audio(voice(0.3)[0]),
    "stereo": fit_audio(voice(5, channels=2).mean(0)),
    "noise": 0.1 * NOISE,
    "clipped": np.clip(2 * NOISE, -1, 1),
    "silence in half": np.where(np.arange(CLIP_SAMPLES) < CLIP_SAMPLES // 2, 0.1 * NOISE, 0),
    "last bits": np.round(3 * NOISE) / 32768,
    "click": np.eye(1, CLIP_SAMPLES, 777)[0],
    "square": np.sign(np.sin(2 * np.pi * 100 / 16_000 * np.arange(CLIP_SAMPLES))),
    **DEGENERATE,
}


@pytest.mark.parametrize("sound", SOUNDS)
def test_pyaudioanalysis_equals_the_package(loaded, sound):
    from pyAudioAnalysis.ShortTermFeatures import feature_extraction

    wave = SOUNDS[sound].astype(np.float32)
    reference, names = feature_extraction(wave, 16_000, 8000, 4800)
    ours = loaded["pyaudioanalysis"](wave[None])[0]
    assert ours.shape == (79, len(names)) and f"pyAudioAnalysis {version('pyAudioAnalysis')}" == (
        loaded["pyaudioanalysis"].constituent.extractor
    )
    np.testing.assert_allclose(ours, reference.T, rtol=1e-5, atol=1e-9)


def test_rows_that_float16_cannot_represent_become_nan():
    values = np.ones((1, 5, 3), np.float32)
    values[0, 1, 0], values[0, 2, 1], values[0, 3, 2], values[0, 4, 0] = 7e4, np.inf, np.nan, -65_504
    kept = storable(values).astype(np.float16)
    assert np.isnan(kept[0, 1:4]).all() and np.isfinite(kept[0, [0, 4]]).all()


def test_extractors_are_loaded_in_the_order_of_the_config():
    loaded = load("mel", "pyaudioanalysis")
    assert [part.constituent.name for part in loaded] == ["mel", "pyaudioanalysis"]


def test_a_missing_package_is_reported_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "extract.extractors.ge2e", raising=False)
    with pytest.raises(UserError, match=r'ge2e.*torch: pip install -e "\.\[extract\]"'):
        load("ge2e")


@pytest.mark.frameworks
def test_extracting_needs_neither_jax_nor_torch_nor_tensorflow():
    heavy = "{'jax', 'torch', 'tensorflow', 'slf_jax', 'librosa', 'pyAudioAnalysis'}"
    load_all = f"import sys, extract.run, extract.extractors.registry as r; r.load({{'extractors': {NAMES}}})"
    code = f"{load_all}; sys.exit(str({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.strip() == "set()"


@pytest.mark.parametrize(
    "windows, message",
    [
        (((25, 1),), "25 s every 1 s does not fit clips of 24 s"),
        (((24, 24), (24.1, 1)), "24.1 s every 1 s does not fit"),
    ],
)
def test_windows_longer_than_a_clip_are_rejected(windows, message):
    with pytest.raises(UserError, match=rf"config.extract.pyannote.windows.*{message}"):
        registry.plan_constituents({"extractors": ("pyannote",), "pyannote": {"windows": windows}})


def test_the_number_of_rows_is_derived_from_the_windows():
    def rows(*windows):
        (planned,) = registry.plan_constituents({"extractors": ("titanet",), "titanet": {"windows": windows}})
        return planned.rows, planned.windows

    assert rows((24, 24)) == (1, "whole clip")
    assert rows((24, 24), (12, 4), (6, 2), (3, 2)) == (26, "24/24, 12/4, 6/2, 3/2 s")
    assert rows((0.6, 0.2)) == (118, "0.6/0.2 s")
