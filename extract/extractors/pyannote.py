"""Speaker embeddings by pyannote.audio over windows: `pyannote/embedding` (512 dimensions), or WeSpeaker.

pyannote's loader unpickles its checkpoints: use only weights from a source that you trust.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version

from extract.extractors.weights import load_weights
from extract.extractors.windows import WindowEmbedder
from extract.frameworks import device, quiet

with quiet():  # pyannote warns if torchcodec finds no FFmpeg; we pass arrays, not files
    from pyannote.audio import Model


def load(settings: Mapping) -> WindowEmbedder:
    """Loads the extractor `pyannote`."""
    # The hub's library reads the token for gated models from HF_TOKEN.
    model = load_weights(settings["name"], settings["weights"], _load)
    return WindowEmbedder(
        settings["name"],
        model,
        lambda waves: model(waves[:, None]),
        settings["windows"],
        f"pyannote.audio {version('pyannote.audio')}",
    )


def _load(source: str) -> Model:
    model = Model.from_pretrained(source)
    if model is None:
        raise FileNotFoundError("it contains no model")
    return model.eval().to(device())
