"""Speaker embeddings by NVIDIA NeMo: TitaNet-L (192 dimensions) and SpeakerNet (256), from the hub or a .nemo file."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch

from extract.extractors.weights import load_weights
from extract.extractors.windows import WindowEmbedder
from extract.frameworks import device, quiet
from extract.librosa_cache import import_librosa

import_librosa()  # before NeMo imports it
with quiet():
    from nemo.collections.asr.models import EncDecSpeakerLabelModel
    from nemo.utils import logging


def load(settings: Mapping) -> WindowEmbedder:
    """Loads the extractor `titanet` or `speakernet`: the same class with different weights."""
    logging.setLevel(logging.ERROR)
    model = load_weights(settings["name"], settings["weights"], _load)

    def embed(waves: torch.Tensor) -> torch.Tensor:
        lengths = torch.full((len(waves),), waves.shape[1], device=waves.device)
        return model.forward(input_signal=waves, input_signal_length=lengths)[1]

    return WindowEmbedder(settings["name"], model, embed, settings["windows"], f"NeMo {version('nemo_toolkit')}")


def _load(source: str) -> EncDecSpeakerLabelModel:
    where = torch.device(device())
    if Path(source).exists():
        return EncDecSpeakerLabelModel.restore_from(source, map_location=where).eval()
    return EncDecSpeakerLabelModel.from_pretrained(source, map_location=where).eval()
