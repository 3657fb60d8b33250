"""The fixed texts of the page."""

from __future__ import annotations

from app.limits import Limits

NOT = (
    "Draws faces that go with a voice, an 8x8 thumbnail, an age, a gender and an ethnicity, in any combination. "
    "**The images are synthetic.** They show what a statistical model associates with these inputs, with the biases of "
    "its training data. They are not photographs, not portraits of the person who speaks, and must not be used to "
    "identify or judge anyone."
)
CONSENT = "I may use this recording: it is of my own voice, or the speaker has agreed"
NO_VOICE = "This system was trained without a voice."
EXAMPLES = "Drawn people with synthesised voices. Choose one, then draw."
SCALE = "how strongly the inputs steer the face; 0: the thumbnail alone, 1: no guidance"
SETTINGS = "The first request with other settings takes longer, since the sampler is compiled for them."
MATRIX = "After drawing, this shows the 256x768 feature matrix: what was heard, what is known, and what is masked."
LABELS = {
    "sampler": "Sampler",
    "steps": "Steps",
    "sigma_schedule": "Noise levels",
    "init_noise_scale": "Initial noise scale",
    "churn": "Churn (heun only)",
    "x0_threshold": "Thresholding",
    "thumbnail_consistency": "Make the 8x8 averages equal the thumbnail's",
}


def about(source: object) -> str:
    """A line on the system that draws; `source`: None for the one that comes with the repository."""
    if source is None:
        return (
            "The system is the demo's: it was trained on drawn faces with synthesised voices. It draws made-up people, "
            "and its results say nothing about real ones."
        )
    return f"System: `{source}`"


def privacy(limits: Limits) -> str:
    """What is kept and for how long, and the limits."""
    return (
        "**Your data.** A recording or picture is deleted from the server as soon as it has been read; the features of "
        "the voice and the 8x8 pixels are kept in memory for your next request. These and the faces are deleted "
        f"{_duration(limits.closed_seconds)} after you close this page, or after {_duration(limits.idle_seconds)} "
        "without a request. Nothing is sent to another server.\n\n"
        f"**Limits.** Uploads of {limits.upload_mb} MB and pictures of {limits.megapixels} megapixels; only the first "
        f"24 s of a recording are used. At most {limits.queue} requests wait; one is drawn at a time."
    )


def _duration(seconds: float) -> str:
    return f"{seconds / 60:g} min" if seconds >= 60 else f"{seconds:g} s"
