"""ECAPA-TDNN speaker embeddings by SpeechBrain: `speechbrain/spkrec-ecapa-voxceleb`, 192 dimensions."""

from __future__ import annotations

from collections.abc import Mapping

from extract.extractors.speechbrain import VERSION, load_classifier
from extract.extractors.windows import WindowEmbedder


def load(settings: Mapping) -> WindowEmbedder:
    """Loads the extractor `ecapa`; its embeddings are those of `encode_batch`, not normalised."""
    classifier = load_classifier(settings)
    return WindowEmbedder(
        settings["name"],
        classifier.mods["embedding_model"],
        lambda waves: classifier.encode_batch(waves)[:, 0],
        settings["windows"],
        f"SpeechBrain {VERSION}",
    )
