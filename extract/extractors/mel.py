"""Log-mel spectrogram of the whole clip by librosa.

128 bands from 0 to 8 kHz (Slaney's scale and norm); natural logarithm of the power, at least ln(1e-10). Each end is
padded with 2 ms of silence, since a Hann window gives its first sample zero weight; 666 windows of 64 ms, one every
36 ms, then cover the 24 s without gaps. Six consecutive frames make a row.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from extract.librosa_cache import import_librosa
from extract.media import SAMPLE_RATE
from tfrecords.schema import CONTINUOUS, Constituent

librosa = import_librosa()

BANDS, FRAMES, FRAMES_PER_ROW = 128, 666, 6
WINDOW, HOP, PADDING = 1024, 576, 32  # samples; 665 hops + 1 window = 24 s + 2 paddings
FLOOR = 1e-10


class LogMel:
    """Maps waves float32 [clips, 384000] to log-mel [clips, 111, 768]."""

    def __init__(self) -> None:
        self.constituent = Constituent(
            "mel",
            FRAMES // FRAMES_PER_ROW,
            FRAMES_PER_ROW * BANDS,
            CONTINUOUS,
            extractor=f"librosa {librosa.__version__}",
            windows="64/36 ms, 666 frames, six to a row",
        )
        self._bank = librosa.filters.mel(sr=SAMPLE_RATE, n_fft=WINDOW, n_mels=BANDS)

    def __call__(self, waves: np.ndarray) -> np.ndarray:
        return np.stack([self._rows(wave) for wave in waves])

    def _rows(self, wave: np.ndarray) -> np.ndarray:
        padded = np.pad(wave, PADDING)
        spectrum = librosa.stft(padded, n_fft=WINDOW, hop_length=HOP, center=False)
        # Double precision: the stored float16 then does not depend on the number of threads or on the BLAS library.
        power = self._bank.astype(np.float64) @ np.square(np.abs(spectrum).astype(np.float64))
        rows = np.log(np.maximum(power, FLOOR)).astype(np.float32)
        return rows.T.reshape(self.constituent.rows, self.constituent.width)


def load(settings: Mapping) -> LogMel:
    """Loads the extractor `mel`."""
    return LogMel()
