"""Synthesises a voice with a source-filter model: glottal pulses and breath, moving formants, fricatives."""

from __future__ import annotations

import numpy as np
from scipy import fft, signal

from extract.talkers.identity import Identity, Voice

RATE = 16_000  # Hz
BANDS_HZ = (280.0, 900.0, 2000.0, 3600.0, 5800.0)  # centres of the static timbre bands
_BAND_OCTAVES = 0.3  # std of a timbre band's bump
_VOWELS_HZ = np.array(  # F1, F2, F3 of an average male tract; F4 is fixed
    [
        (730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480),
        (570, 840, 2410), (660, 1720, 2410), (490, 1350, 1690), (440, 1020, 2240),
    ],
    dtype=float,
)  # fmt: skip
_F4_HZ = 3500.0
_BANDWIDTHS_HZ = np.array([80.0, 110.0, 160.0, 240.0])


def synthesize(identity: Identity, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """Synthesises babble of a person: float32 [seconds * 16000] at 16 kHz, RMS 0.08, peak below 1.

    `rng` determines what is said (vowels, pauses, melody), `identity` the voice.
    """
    voice = identity.voice
    total = round(seconds * RATE)
    starts, stops = _syllables(voice, total, rng)
    voiced, pitch = _contours(voice, total, starts, stops, rng)
    noise = rng.standard_normal(total).astype(np.float32)
    source = _pulses(pitch, rng) + 10.0 ** (voice.breath / 20.0) * noise
    speech = _vowels(source * voiced, starts, voice.formant_scale, rng)
    speech += _fricatives(noise, starts, voice.formant_scale, rng) * np.std(speech)
    speech = _colour(speech, voice)
    speech *= 0.08 / np.std(speech)
    speech += 10.0 ** (rng.uniform(-76.0, -70.0) / 20.0) * rng.standard_normal(total)
    return np.clip(speech, -0.99, 0.99).astype(np.float32)


def loudness(audio: np.ndarray, count: int) -> np.ndarray:
    """Returns the RMS of `count` equal parts of the audio, relative to the loudest: float [count]."""
    level = np.array([np.sqrt(np.mean(part**2)) for part in np.array_split(audio, count)])
    return level / level.max()


def _syllables(voice: Voice, total: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Samples the first and last sample of every vowel; slow speakers make more and longer pauses."""
    count = int(total / RATE * voice.rate * 2) + 4
    length = rng.gamma(16.0, 1.0 / 16.0, count) / voice.rate
    pauses = rng.random(count) < 0.6 / voice.rate
    gap = np.where(pauses, rng.uniform(0.2, 0.5, count), 0.12 * length)
    starts = 0.05 + np.concatenate([[0.0], np.cumsum(length + gap)[:-1]])
    keep = starts + length < total / RATE - 0.02
    keep[0] = True
    return (starts[keep] * RATE).astype(int), ((starts + length)[keep] * RATE).astype(int)


def _contours(
    voice: Voice, total: int, starts: np.ndarray, stops: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Samples the loudness of the voicing and the pitch in Hz, both [total]."""
    knots, levels = [0.0], [0.0]
    for start, stop, level in zip(starts, stops, rng.uniform(0.6, 1.0, len(starts)), strict=True):
        ramp = 0.2 * (stop - start)
        knots += [start, start + ramp, stop - ramp, stop]
        levels += [0.0, level, 0.8 * level, 0.0]
    time = np.arange(total)
    accents = voice.f0_range * np.clip(rng.standard_normal(len(starts)), -2.0, 2.0)
    accents -= np.median(accents)
    semitones = np.interp(time, (starts + stops) / 2, accents)
    return np.interp(time, knots, levels), voice.f0 * 2.0 ** (semitones / 12.0)


def _pulses(pitch: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns a pulse train [total] of unit variance with 1 % jitter; each pulse is split between two samples."""
    phase = np.cumsum(pitch / RATE)
    times = np.interp(np.arange(1.0, phase[-1]), phase, np.arange(len(phase)))  # in samples
    times += 0.01 * RATE / pitch[times.astype(int)] * rng.standard_normal(len(times))
    times = np.clip(times, 0, len(pitch) - 2)
    whole = times.astype(int)
    train = np.zeros(len(pitch))
    np.add.at(train, whole, 1.0 - (times - whole))
    np.add.at(train, whole + 1, times - whole)
    return train / np.std(train)


def _vowels(source: np.ndarray, starts: np.ndarray, scale: float, rng: np.random.Generator) -> np.ndarray:
    """Filters the source with one vowel per syllable, which glides half-way into the next: [total]."""
    rounds = len(starts) // len(_VOWELS_HZ) + 1  # each vowel once per round, as in a long text
    order = np.concatenate([rng.permutation(len(_VOWELS_HZ)) for _ in range(rounds)])
    targets = _VOWELS_HZ[order[: len(starts) + 1]]
    targets = targets * rng.normal(1.0, 0.03, targets.shape)
    cuts = np.append(starts, len(source))
    out = np.zeros(len(source))
    state = np.zeros((len(_BANDWIDTHS_HZ), 2))
    for index in range(len(starts)):
        first, last = cuts[index], cuts[index + 1]
        middle = (first + last) // 2
        glide = 0.7 * targets[index] + 0.3 * targets[index + 1]
        for begin, end, formants in ((first, middle, targets[index]), (middle, last, glide)):
            resonators = _resonators(scale * np.append(formants, _F4_HZ), scale)
            out[begin:end], state = signal.sosfilt(resonators, source[begin:end], zi=state)
    return out


def _resonators(formants: np.ndarray, scale: float) -> np.ndarray:
    """Returns a cascade of two-pole resonators with unit gain at 0 Hz: second-order sections [4, 6]."""
    radius = np.exp(-np.pi * scale * _BANDWIDTHS_HZ / RATE)
    angle = 2 * np.pi * np.minimum(formants, 0.46 * RATE) / RATE
    sections = np.zeros((len(formants), 6))
    sections[:, 3] = 1.0
    sections[:, 4] = -2.0 * radius * np.cos(angle)
    sections[:, 5] = radius**2
    sections[:, 0] = sections[:, 3:].sum(1)
    return sections


def _fricatives(noise: np.ndarray, starts: np.ndarray, scale: float, rng: np.random.Generator) -> np.ndarray:
    """Returns bursts of high-frequency noise just before a third of the syllables: [total]."""
    envelope = np.zeros(len(noise))
    for start in starts[rng.random(len(starts)) < 0.35]:
        length = int(rng.uniform(0.05, 0.1) * RATE)
        begin = max(0, start - length // 2)
        burst = np.hanning(length)[: len(noise) - begin]
        envelope[begin : begin + len(burst)] = burst
    edges = np.array([2900.0, 5200.0]) * scale
    band = signal.butter(2, np.minimum(edges, 7600.0), "band", fs=RATE, output="sos")
    hiss = signal.sosfilt(band, noise)
    return envelope * hiss


def _colour(speech: np.ndarray, voice: Voice) -> np.ndarray:
    """Applies the voice's long-term spectrum, tilt and timbre bands, as one zero-phase filter."""
    size = fft.next_fast_len(len(speech), real=True)
    hz = np.clip(fft.rfftfreq(size, 1.0 / RATE), 60.0, None)
    octaves = np.log2(hz)
    gain_db = voice.tilt * np.clip(octaves - np.log2(500.0), 0.0, None)
    for centre, gain in zip(BANDS_HZ, voice.bands, strict=True):
        gain_db += gain * np.exp(-0.5 * ((octaves - np.log2(centre)) / _BAND_OCTAVES) ** 2)
    gain_db[fft.rfftfreq(size, 1.0 / RATE) < 60.0] = -60.0
    return fft.irfft(fft.rfft(speech, size) * 10.0 ** (gain_db / 20.0), size)[: len(speech)]
