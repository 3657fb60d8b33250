"""Speaker embeddings by pyannote.audio over windows: `pyannote/embedding`, 512 numbers, or WeSpeaker by config.

pyannote's own loader unpickles its checkpoints: give it only weights whose source you trust.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version

from extract.extractors.windows import Embedder
from extract.frameworks import device, load_weights, quiet

with quiet():  # it warns where torchcodec finds no FFmpeg; we hand it waves, not files
    from pyannote.audio import Model


def load(settings: Mapping) -> Embedder:
    """The extractor `pyannote`."""
    # The token, where one is needed, is read from HF_TOKEN by the hub's library.
    model = load_weights(settings["name"], settings["weights"], _load)
    return Embedder(
        settings["name"],
        model,
        lambda waves: model(waves[:, None]),
        settings["windows"],
        f"pyannote.audio {version('pyannote.audio')}",
    )


def _load(source: str) -> Model:
    model = Model.from_pretrained(source)
    if model is None:
        raise FileNotFoundError("no model in it")
    return model.eval().to(device())
