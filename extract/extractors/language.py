"""Spoken language by SpeechBrain: `speechbrain/lang-id-commonlanguage_ecapa`, or VoxLingua107 by config.

The constituent holds the log-probability of every language; the record's label is the likeliest, unless the
attributes' table knows better. The languages, in the model's order, become the dataset's.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from extract.extractors.speechbrain import VERSION, load_classifier
from extract.frameworks import by_passes, digest
from tfrecords.schema import ASIDE, LANGUAGE_LOGPROBS, Constituent

SPELLING = {"ukranian": "ukrainian", "mangolian": "mongolian"}  # as CommonLanguage writes them


class Language:
    """Waves float32 [clips, 384000] to log-probabilities [clips, 1, languages]; their names are `labels`."""

    def __init__(self, settings: Mapping) -> None:
        self._classifier = load_classifier(settings)
        names = self._classifier.hparams.label_encoder.ind2lab
        self.labels = tuple(plain_name(names[i]) for i in range(len(names)))
        weights = digest(torch.nn.ModuleDict({k: self._classifier.mods[k] for k in ("embedding_model", "classifier")}))
        self.constituent = Constituent(
            LANGUAGE_LOGPROBS.name, 1, len(self.labels), ASIDE, f"SpeechBrain {VERSION}", weights, "whole clip"
        )

    def __call__(self, waves: np.ndarray) -> np.ndarray:
        return by_passes(self._classify, waves)[:, None]

    def _classify(self, waves: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            scores = self._classifier.classify_batch(torch.from_numpy(waves))[0]
            # Leaves log-probabilities as they are; CommonLanguage's classifier gives cosines.
            return torch.log_softmax(scores, -1).float().cpu().numpy()


def plain_name(label: str) -> str:
    """A language as people write it: `uk: Ukranian` is `ukrainian`."""
    name = label.split(": ", 1)[-1].strip().lower()
    return SPELLING.get(name, name)


def load(settings: Mapping) -> Language:
    """The extractor `language`."""
    return Language(settings)
