"""Log-mel spectrogram of the whole clip, as librosa computes it.

128 bands from 0 to 8 kHz (Slaney's scale and norm); natural logarithm of the power, at least ln(1e-10). Each end is
padded with 2 ms of silence, since a Hann window gives its first sample zero weight; 666 windows of 64 ms, one every
36 ms, then cover the 24 s without gaps. Six consecutive frames make a row.

librosa itself is not imported: that takes 4 s in each process, and 20 s in the first, which compiles it. A test
compares `spectrum` and `mel_filters` with librosa's, bit by bit.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from extract.media import SAMPLE_RATE
from tfrecords.schema import CONTINUOUS, Constituent

BANDS, FRAMES, FRAMES_PER_ROW = 128, 666, 6
WINDOW, HOP, PADDING = 1024, 576, 32  # samples; 665 hops + 1 window = 24 s + 2 paddings
FLOOR = 1e-10
# Slaney's scale: linear up to 1 kHz, which is 15 mel, then logarithmic.
HZ_PER_MEL, LINEAR_HZ, LINEAR_MEL, LOG_STEP = 200 / 3, 1000.0, 15.0, np.log(6.4) / 27


class LogMel:
    """Maps waves float32 [clips, 384000] to log-mel [clips, 111, 768]."""

    def __init__(self) -> None:
        self.constituent = Constituent(
            "mel",
            FRAMES // FRAMES_PER_ROW,
            FRAMES_PER_ROW * BANDS,
            CONTINUOUS,
            extractor="librosa 0.11.0",
            windows="64/36 ms, 666 frames, six to a row",
        )
        # Double precision: the stored float16 then does not depend on the number of threads or on the BLAS library.
        self._filters = mel_filters(BANDS, WINDOW).T.astype(np.float64)

    def __call__(self, waves: np.ndarray) -> np.ndarray:
        return np.stack([self._rows(wave) for wave in waves])

    def _rows(self, wave: np.ndarray) -> np.ndarray:
        magnitude = np.abs(spectrum(np.pad(wave, PADDING), WINDOW, HOP)).astype(np.float64)
        power = np.square(magnitude) @ self._filters
        rows = np.log(np.maximum(power, FLOOR)).astype(np.float32)
        return rows.reshape(self.constituent.rows, self.constituent.width)


def spectrum(wave: np.ndarray, window: int, hop: int) -> np.ndarray:
    """Returns the spectrum of Hann windows of a wave float32 [samples]: complex64 [frames, window / 2 + 1].

    `window` and `hop` are in samples. The transpose of
    `librosa.stft(wave, n_fft=window, hop_length=hop, center=False)`.
    """
    hann = 0.5 + 0.5 * np.cos(np.linspace(-np.pi, np.pi, window + 1)[:-1])
    frames = np.lib.stride_tricks.sliding_window_view(wave, window)[::hop]
    return np.fft.rfft(hann * frames).astype(np.complex64)


def mel_filters(bands: int, window: int) -> np.ndarray:
    """Returns triangular filters of equal area from 0 to 8 kHz: float32 [bands, window / 2 + 1].

    The same as `librosa.filters.mel(sr=16000, n_fft=window, n_mels=bands)`.
    """
    highest = LINEAR_MEL + np.log(SAMPLE_RATE / 2 / LINEAR_HZ) / LOG_STEP
    mel = np.linspace(0, highest, bands + 2)[:, None]
    hz = np.where(mel < LINEAR_MEL, HZ_PER_MEL * mel, LINEAR_HZ * np.exp(LOG_STEP * (mel - LINEAR_MEL)))
    bins = np.fft.rfftfreq(window, 1 / SAMPLE_RATE)
    low, centre, high = hz[:-2], hz[1:-1], hz[2:]
    triangles = np.maximum(0, np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)))
    return (triangles.astype(np.float32) * (2 / (high - low))).astype(np.float32)


def load(settings: Mapping) -> LogMel:
    """Loads the extractor `mel`."""
    return LogMel()
