"""Spoken language identification by SpeechBrain: `speechbrain/lang-id-commonlanguage_ecapa`, or VoxLingua107.

The constituent holds the log-probability of every language. The record's label is the most likely language unless the
attributes CSV gives one. The dataset's languages are the model's, in its order.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from extract.extractors.speechbrain import VERSION, load_classifier
from extract.extractors.weights import digest
from extract.frameworks import apply_in_batches
from tfrecords.schema import ASIDE, LANGUAGE_LOGPROBS, Constituent

SPELLING = {"ukranian": "ukrainian", "mangolian": "mongolian"}  # CommonLanguage's misspellings


class LanguageClassifier:
    """Maps waves float32 [clips, 384000] to log-probabilities [clips, 1, languages], in the order of `labels`."""

    def __init__(self, settings: Mapping) -> None:
        self._classifier = load_classifier(settings)
        names = self._classifier.hparams.label_encoder.ind2lab
        self.labels = tuple(plain_name(names[i]) for i in range(len(names)))
        weights = digest(torch.nn.ModuleDict({k: self._classifier.mods[k] for k in ("embedding_model", "classifier")}))
        self.constituent = Constituent(
            LANGUAGE_LOGPROBS.name, 1, len(self.labels), ASIDE, f"SpeechBrain {VERSION}", weights, "whole clip"
        )

    def __call__(self, waves: np.ndarray) -> np.ndarray:
        return apply_in_batches(self._classify, waves)[:, None]

    def _classify(self, waves: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            scores = self._classifier.classify_batch(torch.from_numpy(waves))[0]
            # CommonLanguage's classifier returns cosines; log-probabilities are unchanged by a second log-softmax.
            return torch.log_softmax(scores, -1).float().cpu().numpy()


def plain_name(label: str) -> str:
    """Returns the plain name of a language: `ukrainian` for `uk: Ukranian`."""
    name = label.split(": ", 1)[-1].strip().lower()
    return SPELLING.get(name, name)


def load(settings: Mapping) -> LanguageClassifier:
    """Loads the extractor `language`."""
    return LanguageClassifier(settings)
