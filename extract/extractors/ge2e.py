"""GE2E speaker embeddings (Wan et al. 2018) by Resemblyzer, 256 dimensions, over windows of each clip.

The weights come with the package, so nothing is downloaded. As in the package, the volume of quiet speech is raised to
-30 dBFS, an utterance is cut into partial utterances of 1.6 s, 1.3 in a second, and its embedding is the mean of
theirs, at unit length. Silence is not trimmed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from extract.extractors.mel import mel_filters, spectrum
from extract.extractors.registry import Windows, count_windows, format_windows
from extract.extractors.weights import digest
from extract.frameworks import apply_in_batches, device
from extract.media import SAMPLE_RATE
from tfrecords.schema import EMBEDDING, Constituent

WIDTH, BANDS, LAYERS = 256, 40, 3
FRAME, HOP = SAMPLE_RATE * 25 // 1000, SAMPLE_RATE // 100  # samples of a mel frame, and between two
PARTIAL, STEP = 160, 77  # frames of a partial utterance, and between two: 1.3 in a second
MIN_COVERAGE = 0.75  # share of the last partial utterance, or of a window, that must be speech
LOUDNESS = 10 ** (-30 / 20)  # root mean square at -30 dBFS
MIN_REPETITION = 64  # samples; a shorter match at the end of a sound may be chance
MEL = mel_filters(BANDS, FRAME)


class SpeechEncoder(torch.nn.Module):
    """The package's network: mel frames [N, 160, 40] to embeddings of unit length [N, 256].

    The package's own class cannot be imported beside current setuptools, since its voice activity detector needs
    pkg_resources.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(BANDS, WIDTH, LAYERS, batch_first=True)
        self.linear = torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, mels: torch.Tensor) -> torch.Tensor:
        _, (hidden, _) = self.lstm(mels)
        return torch.nn.functional.normalize(torch.relu(self.linear(hidden[-1])), eps=0)


@dataclasses.dataclass(frozen=True)
class GE2E:
    """Maps waves float32 [clips, 384000] to one embedding for each window: float32 [clips, windows, 256].

    A sound that was repeated to fill the clip counts once: windows end where the repetition begins. Rows are NaN for
    windows that then hold less than three quarters of their length (except the first of each length), for digital
    silence, and for samples that are not finite.
    """

    network: SpeechEncoder
    windows: Windows

    @cached_property
    def constituent(self) -> Constituent:
        """Name, shape and provenance of the features."""
        rows = sum(count_windows("ge2e", *window) for window in self.windows)
        extractor = f"Resemblyzer {version('resemblyzer')}"
        return Constituent(
            "ge2e", rows, WIDTH, EMBEDDING, extractor, digest(self.network), format_windows(self.windows)
        )

    def __call__(self, waves: np.ndarray) -> np.ndarray:
        return apply_in_batches(self._embed, waves)

    def _embed(self, waves: np.ndarray) -> np.ndarray:
        """All windows of some clips; their partial utterances go through the network as one batch."""
        rows = np.full((len(waves), self.constituent.rows, WIDTH), np.nan, np.float32)
        utterances = [(i, row, sound) for i, wave in enumerate(waves) for row, sound in self._utterances(wave)]
        if not utterances:
            return rows
        partials = [partial_utterances(sound) for _, _, sound in utterances]
        with torch.inference_mode():
            embedded = self.network(torch.from_numpy(np.concatenate(partials)).to(device())).cpu().numpy()
        ends = np.cumsum([len(part) for part in partials])
        for (i, row, _), part in zip(utterances, np.split(embedded, ends[:-1]), strict=True):
            mean = part.mean(0)
            rows[i, row] = mean / np.linalg.norm(mean)
        return rows

    def _utterances(self, wave: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """The row and the sound of each window that holds enough speech."""
        speech = raise_volume(wave[: period(wave)])
        row = 0
        for length, hop in self.windows:
            samples = round(length * SAMPLE_RATE)
            for number in range(count_windows("ge2e", length, hop)):
                start = round(number * hop * SAMPLE_RATE)
                sound = speech[start : start + samples]
                enough = number == 0 or len(sound) >= MIN_COVERAGE * samples
                if enough and 0 < np.abs(sound).max() < np.inf:  # False for NaN
                    yield row, sound
                row += 1


def period(wave: np.ndarray) -> int:
    """The number of samples after which a sound repeats itself exactly, until its end; its length if it does not.

    Finds all positions p with wave[p:] == wave[:-p] at once, by comparing polynomial hashes modulo 2^64.
    """
    bits = wave.view(np.uint32)  # two NaN can be equal
    powers = np.cumprod(np.full(len(bits), 0x9E3779B97F4A7C15, np.uint64))  # of any large odd number
    prefixes = np.cumsum(bits * powers)
    lead = int(np.argmax(bits != bits[0]))  # a repetition must be longer: silence at both ends is none
    starts = np.arange(1, len(bits) - lead - MIN_REPETITION)
    equal = prefixes[-1] - prefixes[starts - 1] == prefixes[-1 - starts] * powers[starts - 1]
    return next((int(p) for p in starts[equal] if np.array_equal(bits[p:], bits[:-p])), len(bits))


def raise_volume(wave: np.ndarray) -> np.ndarray:
    """Scales a sound that is quieter than -30 dBFS to that level, as the package does. Silence becomes NaN."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return wave * np.maximum(1, LOUDNESS / np.sqrt(np.mean(np.square(wave))))


def partial_utterances(sound: np.ndarray) -> np.ndarray:
    """Mel frames float32 [N, 160, 40] of the partial utterances of a sound, which is padded with silence for the last.

    The last one is left out if less than three quarters of it are in the sound, unless it is the only one.
    """
    frames = -(-(len(sound) + 1) // HOP)
    starts = range(0, max(1, frames - PARTIAL + STEP + 1), STEP)
    if len(starts) > 1 and (len(sound) - starts[-1] * HOP) / (PARTIAL * HOP) < MIN_COVERAGE:
        starts = starts[:-1]
    missing = max(0, (starts[-1] + PARTIAL) * HOP - len(sound))
    padded = np.pad(sound, (FRAME // 2, missing + FRAME // 2))  # frames are centred
    mel = MEL @ np.square(np.abs(spectrum(padded, FRAME, HOP))).T
    return np.stack([mel.T[start : start + PARTIAL] for start in starts])


def load(settings: Mapping) -> GE2E:
    """Loads the extractor `ge2e` with the weights inside the package."""
    spec = find_spec("resemblyzer")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(name="resemblyzer")
    file = Path(spec.origin).with_name("pretrained.pt")
    state = torch.load(file, map_location="cpu", weights_only=True)["model_state"]
    network = SpeechEncoder()
    # The checkpoint also holds two numbers that only the training loss uses.
    network.load_state_dict({name: state[name] for name in network.state_dict()})
    return GE2E(network.eval().to(device()), settings["windows"])
