"""The identity of a synthetic person: attributes, a hidden latent, and the face and voice derived from both.

Every visible factor of the face is a standardised score, the sum of three parts: an effect of the attributes (age,
gender, ethnicity), an effect of the latents that also shape the voice, and private noise. Voice and attributes together
therefore predict most of a factor, but never all of it.

The effects of ethnicity are ARBITRARY directions drawn once from a fixed generator, and so are the odds of the skin
tones for each label. They only give the labels some structure to learn; nothing here is a claim about real groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

GENDERS = ("female", "male")
ETHNICITIES = ("asian", "indian", "black", "white", "middle eastern", "latino hispanic")
AGE_RANGE = (18.0, 80.0)
LATENTS = 11  # entries of z; each one changes exactly one voice parameter, see `_voice`

SKIN_TONES = ((240, 204, 176), (222, 176, 138), (186, 132, 94), (142, 96, 68))
HAIR_COLOURS = ((34, 28, 28), (96, 60, 36), (214, 172, 92), (178, 178, 180))  # the last is grey
HAIR_STYLES = ("short", "fringe", "long", "receding")
IRIS_COLOURS = ((62, 36, 20), (66, 92, 44), (58, 110, 160), (120, 150, 168))
FRAME_COLOURS = ((20, 20, 24), (128, 18, 30), (26, 42, 118))

# Shares of a score's variance: attributes, voice latents; the rest is private noise. Thresholds lose more information:
# from attributes and exact latents, a linear fit explains about 0.9 of the variance of the sizes (lines: 0.8), but only
# 0.5 to 0.65 of the binary features, of which it classifies 9 in 10 correctly.
ATTRIBUTE_SHARE = 0.3
VOICE_SHARE = 0.6

# factor: (effect of being male, of age, of ethnicity, {latent: weight}), as relative weights.
_FACTORS: dict[str, tuple[float, float, float, dict[int, float]]] = {
    "hair_texture": (0.2, 0.2, 0.8, {10: 1.0}),
    "glasses": (0.0, 0.7, 0.8, {7: 1.0}),
    "glasses_shape": (0.4, 0.0, 0.8, {8: 1.0}),
    "frame_colour": (-0.5, 0.3, 0.8, {2: 1.0}),
    "brow_thickness": (0.8, 0.0, 0.7, {2: 1.0}),
    "brow_angle": (0.3, 0.0, 0.8, {3: 1.0}),
    "brow_height": (-0.5, 0.3, 0.7, {9: 1.0}),
    "beard": (0.0, 0.4, 0.8, {8: 1.0, 0: -0.4}),
    "eye_size": (-0.6, -0.3, 0.7, {3: 1.0}),
    "eye_spacing": (0.0, 0.0, 0.8, {5: 1.0, 1: 0.6}),
    "eye_tilt": (-0.3, 0.0, 0.9, {3: 1.0}),
    "iris": (0.0, 0.0, 0.8, {8: 1.0}),
    "nose_width": (0.5, 0.2, 0.8, {2: 1.0, 1: 0.4}),
    "nose_length": (0.2, 0.5, 0.7, {10: 1.0}),
    "mouth_width": (0.3, 0.0, 0.8, {4: 1.0}),
    "lip_thickness": (-0.6, -0.4, 0.7, {9: 1.0, 8: 0.6}),
    "jaw": (0.9, 0.0, 0.5, {0: -1.0}),
    "face_length": (0.3, 0.2, 0.8, {1: 1.0}),
    "lines": (0.1, 2.0, 0.3, {10: 1.0, 6: 0.4}),
    "freckles": (-0.2, -0.5, 0.7, {7: -1.0}),
    "earrings": (0.0, 0.2, 0.8, {7: 1.0}),
}


def _ethnicity_tables() -> tuple[np.ndarray, np.ndarray]:
    """Returns arbitrary fixed effects: scores [6, factors] (mean 0, std 1 per column), skin odds [6, 4]."""
    rng = np.random.default_rng(20240611)
    effects = rng.standard_normal((len(ETHNICITIES), len(_FACTORS)))
    effects = (effects - effects.mean(0)) / effects.std(0)
    skin = rng.dirichlet(np.full(len(SKIN_TONES), 1.5), size=len(ETHNICITIES))
    return effects, 0.75 * skin + 0.25 / len(SKIN_TONES)


_ETHNICITY_EFFECTS, _SKIN_ODDS = _ethnicity_tables()


@dataclass(frozen=True)
class Face:
    """Structure of a face. Floats are standard scores in [-2.2, 2.2] unless stated otherwise."""

    glasses: str  # none, round, square
    beard: str  # none, stubble, moustache, full
    hair_texture: str  # straight, wavy
    earrings: bool
    freckles: bool
    brow_thickness: float
    brow_angle: float
    brow_height: float
    eye_size: float
    eye_spacing: float
    eye_tilt: float
    nose_width: float
    nose_length: float
    mouth_width: float
    lip_thickness: float
    jaw: float  # pointed to square
    face_length: float
    lines: float  # strength of the age lines, 0 to 1


@dataclass(frozen=True)
class Palette:
    """Choices from small palettes, shared by many people: indices into them, and the name of the hair style."""

    skin: int
    hair: int
    hair_style: str
    iris: int
    frame: int


@dataclass(frozen=True)
class Voice:
    """Parameters of the source-filter voice."""

    f0: float  # median pitch, Hz
    formant_scale: float  # 1 for an average male vocal tract; shorter tracts are above 1
    tilt: float  # slope of the spectrum above 500 Hz, dB per octave
    bands: tuple[float, ...]  # gain of the timbre bands of voice.BANDS_HZ, dB
    breath: float  # aspiration noise against the glottal pulses, dB
    rate: float  # syllables per second of speech
    f0_range: float  # std of the pitch between syllables, semitones


@dataclass(frozen=True)
class Identity:
    """One synthetic person; the same in every clip of that person."""

    speaker_id: str
    seed: int
    index: int
    age: float  # years
    gender: str
    ethnicity: str
    z: tuple[float, ...]  # the hidden latent, mean 0 and variance 1
    face: Face
    palette: Palette
    voice: Voice


def draw_identity(seed: int, index: int) -> Identity:
    """Samples person `index` of the population `seed`; deterministic."""
    rng = np.random.default_rng([seed, index])
    z = _draw_latent(rng)
    age = float(rng.uniform(*AGE_RANGE))
    male = bool(rng.integers(2))
    ethnicity = int(rng.integers(len(ETHNICITIES)))
    scores = _scores(z, age, male, ethnicity, rng)
    return Identity(
        speaker_id=f"p{index:05d}",
        seed=seed,
        index=index,
        age=round(age, 1),
        gender=GENDERS[male],
        ethnicity=ETHNICITIES[ethnicity],
        z=tuple(z.tolist()),
        face=_face(scores, male),
        palette=_palette(scores, age, male, ethnicity, rng),
        voice=_voice(z, age, male),
    )


def _draw_latent(rng: np.random.Generator) -> np.ndarray:
    """Samples latents [11] of mean 0 and variance 1, each from two Gaussians, so that voices form clusters."""
    side = rng.choice((-1.0, 1.0), LATENTS)
    return 0.86 * side + 0.51 * np.clip(rng.standard_normal(LATENTS), -2.5, 2.5)


def _scores(z: np.ndarray, age: float, male: bool, ethnicity: int, rng: np.random.Generator) -> dict[str, float]:
    """Returns the standardised score of every factor: attributes + voice latents + private noise."""
    low, high = AGE_RANGE
    age_score = (age - (low + high) / 2) / ((high - low) / np.sqrt(12))
    private_share = 1.0 - ATTRIBUTE_SHARE - VOICE_SHARE
    scores = {}
    for column, (name, (by_gender, by_age, by_ethnicity, links)) in enumerate(_FACTORS.items()):
        effects = np.array([by_gender, by_age, by_ethnicity])
        values = np.array([1.0 if male else -1.0, age_score, _ETHNICITY_EFFECTS[ethnicity, column]])
        weights = np.array(list(links.values()))
        attribute = effects @ values / np.linalg.norm(effects)
        heard = weights @ z[list(links)] / np.linalg.norm(weights)
        score = (
            np.sqrt(ATTRIBUTE_SHARE) * attribute
            + np.sqrt(VOICE_SHARE) * heard
            + np.sqrt(private_share) * rng.standard_normal()
        )
        scores[name] = float(np.clip(score, -2.2, 2.2))
    return scores


def _face(scores: dict[str, float], male: bool) -> Face:
    """Converts scores to structure: thresholds for categories, the score itself for sizes."""
    glasses = "none"
    if scores["glasses"] > 0.0:
        glasses = "square" if scores["glasses_shape"] > 0.0 else "round"
    beard = "none"
    if male:
        beard = ("none", "stubble", "moustache", "full")[int(np.searchsorted((-0.6, 0.0, 0.5), scores["beard"]))]
    sizes = {
        name: scores[name]
        for name in (
            "brow_thickness", "brow_angle", "brow_height", "eye_size", "eye_spacing", "eye_tilt",
            "nose_width", "nose_length", "mouth_width", "lip_thickness", "jaw", "face_length",
        )
    }  # fmt: skip
    return Face(
        glasses=glasses,
        beard=beard,
        hair_texture="straight" if scores["hair_texture"] > 0.0 else "wavy",
        earrings=not male and scores["earrings"] > 0.0,
        freckles=scores["freckles"] > 0.7,
        lines=float(np.clip(0.35 + 0.6 * scores["lines"], 0.0, 1.0)),
        **sizes,
    )


def _palette(scores: dict[str, float], age: float, male: bool, ethnicity: int, rng: np.random.Generator) -> Palette:
    """Samples colours and hair style."""
    skin = int(rng.choice(len(SKIN_TONES), p=_SKIN_ODDS[ethnicity]))
    grey = len(HAIR_COLOURS) - 1
    turned = rng.random() < 1.0 / (1.0 + np.exp((58.0 - age) / 5.0))
    hair = grey if turned else int(rng.choice(grey, p=(0.45, 0.33, 0.22)))
    bald = 0.1 + 0.35 * (age > 50.0)
    odds = (0.7 - bald, 0.2, 0.1, bald) if male else (0.2, 0.4, 0.4, 0.0)
    return Palette(
        skin=skin,
        hair=hair,
        hair_style=HAIR_STYLES[int(rng.choice(len(HAIR_STYLES), p=odds))],
        iris=int(np.searchsorted((-0.4, 0.1, 0.6), scores["iris"])),
        frame=int(np.searchsorted((0.0, 0.7), scores["frame_colour"])),
    )


def _voice(z: np.ndarray, age: float, male: bool) -> Voice:
    """Returns the voice. Each latent changes one parameter, enough to be measurable in long-term statistics."""
    base = 112.0 if male else 205.0
    return Voice(
        f0=float(base * np.exp(0.17 * z[0]) * (1.0 - 0.0015 * (age - 49.0))),
        formant_scale=float((1.0 if male else 1.14) * np.exp(0.075 * z[1])),
        tilt=float(-1.0 + 2.4 * z[2]),
        bands=tuple(float(6.5 * value) for value in z[[10, 3, 7, 8, 9]]),
        breath=float(-14.0 + 7.0 * z[4]),
        rate=float(4.2 * np.exp(0.33 * z[5])),
        f0_range=float(1.6 * np.exp(0.65 * z[6])),
    )
