"""Loading SpeechBrain's classifiers, for `ecapa` and `language`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from extract.frameworks import device, load_weights, quiet

with quiet():
    from speechbrain.inference.classifiers import EncoderClassifier

VERSION = version("speechbrain")


def load_classifier(settings: Mapping) -> EncoderClassifier:
    """The model that `settings["weights"]` names. Raises `UserError`."""
    return load_weights(settings["name"], settings["weights"], _load)


def _load(source: str) -> EncoderClassifier:
    # A published folder's own paths lead back to the hub.
    overrides = {"pretrained_path": source} if Path(source).exists() else {}
    classifier = EncoderClassifier.from_hparams(
        source=source, savedir=None, overrides=overrides, run_opts={"device": device()}
    )
    classifier.hparams.label_encoder.ignore_len()
    return classifier.eval()
