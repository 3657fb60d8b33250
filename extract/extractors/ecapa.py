"""ECAPA-TDNN speaker embeddings by SpeechBrain: `speechbrain/spkrec-ecapa-voxceleb`, 192 numbers."""

from __future__ import annotations

from collections.abc import Mapping

from extract.extractors.speechbrain import VERSION, load_classifier
from extract.extractors.windows import Embedder


def load(settings: Mapping) -> Embedder:
    """The extractor `ecapa`: raw embeddings, as `encode_batch` gives them."""
    classifier = load_classifier(settings)
    return Embedder(
        settings["name"],
        classifier.mods["embedding_model"],
        lambda waves: classifier.encode_batch(waves)[:, 0],
        settings["windows"],
        f"SpeechBrain {VERSION}",
    )
