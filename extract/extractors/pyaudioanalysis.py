"""pyAudioAnalysis's 34 short-term features and their 34 deltas: windows of 0.5 s every 0.3 s.

The features are zero crossings, energy and its entropy, five spectral features, 13 MFCCs, 12 chroma bands and their
deviation. The library first scales each clip to a peak of 1, so the features do not depend on loudness.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version

import numpy as np
from pyAudioAnalysis import ShortTermFeatures

from extract.media import CLIP_SAMPLES, SAMPLE_RATE
from tfrecords.schema import CONTINUOUS, Constituent

FEATURES = 68
WINDOW, STEP = SAMPLE_RATE // 2, SAMPLE_RATE * 3 // 10  # samples


class PyAudioAnalysis:
    """Maps waves float32 [clips, 384000] to short-term features [clips, 79, 68]."""

    def __init__(self) -> None:
        self.constituent = Constituent(
            "pyaudioanalysis",
            (CLIP_SAMPLES - WINDOW) // STEP + 1,
            FEATURES,
            CONTINUOUS,
            extractor=f"pyAudioAnalysis {version('pyAudioAnalysis')}",
            windows="0.5/0.3 s",
        )

    def __call__(self, waves: np.ndarray) -> np.ndarray:
        return np.stack([self._rows(wave) for wave in waves])

    def _rows(self, wave: np.ndarray) -> np.ndarray:
        features, _ = ShortTermFeatures.feature_extraction(wave, SAMPLE_RATE, WINDOW, STEP)
        return features.T.astype(np.float32)


def load(settings: Mapping) -> PyAudioAnalysis:
    """Loads the extractor `pyaudioanalysis`."""
    return PyAudioAnalysis()
