"""pyAudioAnalysis's 34 short-term features and their 34 deltas: windows of 0.5 s every 0.3 s.

The features are zero crossings, energy and its entropy, five spectral features, 13 MFCCs, 12 chroma bands and their
deviation. Each clip is first scaled to a peak of 1, so the features do not depend on loudness.

This is `ShortTermFeatures.feature_extraction` of pyAudioAnalysis 0.3.14 (T. Giannakopoulos, PLOS ONE 10(12), 2015) for
all windows of a clip at once, with the filters made once, in a tenth of the package's time. Its definitions are kept,
also where they are unusual; a test compares the two. The package itself is only needed by that test.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import fft

from extract.media import CLIP_SAMPLES, SAMPLE_RATE
from tfrecords.schema import CONTINUOUS, Constituent

FEATURES = 68
WINDOW, STEP = SAMPLE_RATE // 2, SAMPLE_RATE * 3 // 10  # samples
BINS = WINDOW // 2  # of the spectrum: without the one at half the sampling rate
BLOCKS = 10  # equal parts of a window or of a spectrum, over which entropies are computed
BLOCK = WINDOW // BLOCKS  # samples; divides STEP, so that overlapping windows share blocks
ROLLOFF = 0.9  # share of the power below the rolloff frequency
MFCCS = 13
LINEAR_FILTERS, LOG_FILTERS = 13, 27
EPS = np.finfo(np.float64).eps


class PyAudioAnalysis:
    """Maps waves float32 [clips, 384000] to short-term features [clips, 79, 68]."""

    def __init__(self) -> None:
        self.constituent = Constituent(
            "pyaudioanalysis",
            (CLIP_SAMPLES - WINDOW) // STEP + 1,
            FEATURES,
            CONTINUOUS,
            extractor="pyAudioAnalysis 0.3.14",
            windows="0.5/0.3 s",
        )
        self._mel, self._chroma = _mel_filters(), _chroma_filters()

    def __call__(self, waves: np.ndarray) -> np.ndarray:
        return np.stack([self._rows(wave) for wave in waves])

    def _rows(self, wave: np.ndarray) -> np.ndarray:
        signal = wave.astype(np.float64) / 2**15  # the package expects 16-bit integers; this matters only near silence
        signal -= signal.mean()
        signal /= np.abs(signal).max() + 1e-10
        windows = np.lib.stride_tricks.sliding_window_view(signal, WINDOW)[::STEP]
        magnitude = np.abs(fft.rfft(windows)[:, :BINS]) / BINS
        power = magnitude**2
        mel = np.log10(magnitude @ self._mel + EPS)
        total = power.sum(1, keepdims=True)
        chroma = power @ self._chroma / np.where(total == 0, EPS, total)
        features = np.column_stack(
            [
                _zero_crossings(signal),
                *_energy(signal),
                *_centroid_and_spread(magnitude),
                _entropy(power.reshape(-1, BLOCKS, BINS // BLOCKS).sum(2), total[:, 0]),
                _flux(magnitude),
                # Both sums in the package's order: a different rounding could choose another bin.
                (power.cumsum(1) + EPS > ROLLOFF * total).argmax(1) / BINS,
                fft.dct(mel, norm="ortho")[:, :MFCCS],
                chroma,
                chroma.std(1),
            ]
        )
        deltas = np.diff(features, axis=0, prepend=features[:1])
        return np.concatenate([features, deltas], 1).astype(np.float32)


def _zero_crossings(signal: np.ndarray) -> np.ndarray:
    """Returns the zero crossings of each window per sample: [windows]."""
    crossings = np.abs(np.diff(np.sign(signal))) / 2
    return np.lib.stride_tricks.sliding_window_view(crossings, WINDOW - 1)[::STEP].sum(1) / (WINDOW - 1)


def _energy(signal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean power of each window and the entropy of its distribution over ten blocks, both [windows]."""
    blocks = np.square(signal).reshape(-1, BLOCK).sum(1)
    blocks = np.lib.stride_tricks.sliding_window_view(blocks, BLOCKS)[:: STEP // BLOCK]
    energy = blocks.sum(1)
    return energy / WINDOW, _entropy(blocks, energy)


def _entropy(parts: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Returns the entropy in bits of each row's distribution over its parts [rows, parts]."""
    shares = parts / (total[:, None] + EPS)
    return -(shares * np.log2(shares + EPS)).sum(1)


def _centroid_and_spread(magnitude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and deviation of each spectrum [windows, bins], as shares of half the sampling rate."""
    frequency = np.arange(1, BINS + 1) / BINS
    peak = magnitude.max(1)
    weight = magnitude.sum(1) + EPS * np.where(peak == 0, 1.0, peak)
    centroid = magnitude @ frequency / weight
    distance = (frequency - centroid[:, None]) ** 2
    return centroid, np.sqrt((distance * magnitude).sum(1) / weight)


def _flux(magnitude: np.ndarray) -> np.ndarray:
    """Returns the squared distance of each normalised spectrum from the one before, 0 for the first: [windows]."""
    shares = magnitude / (magnitude.sum(1, keepdims=True) + BINS * EPS)
    return np.square(np.diff(shares, axis=0, prepend=shares[:1])).sum(1)


def _mel_filters() -> np.ndarray:
    """Returns 13 linear and 27 logarithmic triangular filters: [bins, 40].

    As in the package, bins are taken to be twice as far apart as they are.
    """
    linear = 133.33 + 200 / 3 * np.arange(LINEAR_FILTERS)
    edges = np.append(linear, linear[-1] * 1.0711703 ** np.arange(1, LOG_FILTERS + 3))
    hz = np.arange(BINS) / BINS * SAMPLE_RATE
    filters = np.zeros((BINS, LINEAR_FILTERS + LOG_FILTERS))
    for i, (low, centre, high) in enumerate(zip(edges, edges[1:], edges[2:], strict=False)):
        first, middle, last = (int(edge * BINS / SAMPLE_RATE) + 1 for edge in (low, centre, high))
        height = 2 / (high - low)
        filters[first:middle, i] = height / (centre - low) * (hz[first:middle] - low)
        filters[middle:last, i] = height / (high - centre) * (high - hz[middle:last])
    return filters


def _chroma_filters() -> np.ndarray:
    """Returns the weight of each bin's power in the twelve pitch classes: [bins, 12].

    As in the package, only the highest bin of each semitone counts, semitones below 27.5 Hz wrap around, and the
    divisors are looked up by semitone in a table by bin.
    """
    hz = np.arange(1, BINS + 1) * SAMPLE_RATE / WINDOW
    semitones = np.round(12 * np.log2(hz / 27.5)).astype(int)
    _, inverse, counts = np.unique(semitones, return_inverse=True, return_counts=True)
    divisors = counts[inverse][semitones]
    filters = np.zeros((BINS, 12))
    for semitone, highest in dict(zip(semitones, range(BINS), strict=True)).items():
        slot = semitone % BINS
        filters[highest, slot % 12] = 1 / divisors[slot]
    return filters


def load(settings: Mapping) -> PyAudioAnalysis:
    """Loads the extractor `pyaudioanalysis`."""
    return PyAudioAnalysis()
