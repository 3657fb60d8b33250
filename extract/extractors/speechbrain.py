"""Loads SpeechBrain's classifiers for the extractors `ecapa` and `language`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from extract.extractors.weights import load_weights
from extract.frameworks import device, quiet

with quiet():
    from speechbrain.inference.classifiers import EncoderClassifier

VERSION = version("speechbrain")


def load_classifier(settings: Mapping) -> EncoderClassifier:
    """Loads the model at `settings["weights"]`. Raises `UserError`."""
    return load_weights(settings["name"], settings["weights"], _load)


def _load(source: str) -> EncoderClassifier:
    # The paths inside a published model's hyperparameters point to the hub.
    overrides = {"pretrained_path": source} if Path(source).exists() else {}
    classifier = EncoderClassifier.from_hparams(
        source=source, savedir=None, overrides=overrides, run_opts={"device": device()}
    )
    classifier.hparams.label_encoder.ignore_len()
    return classifier.eval()
