"""Speaker embeddings by NVIDIA NeMo: TitaNet-L (192 numbers) and SpeakerNet (256), from the hub or a .nemo file."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch

from extract.extractors.windows import Embedder
from extract.frameworks import device, load_weights, quiet
from extract.librosa_cache import import_librosa

import_librosa()  # NeMo imports it too
with quiet():
    from nemo.collections.asr.models import EncDecSpeakerLabelModel
    from nemo.utils import logging


def load(settings: Mapping) -> Embedder:
    """The extractors `titanet` and `speakernet`: the same class, other weights."""
    logging.setLevel(logging.ERROR)
    model = load_weights(settings["name"], settings["weights"], _load)

    def embed(waves: torch.Tensor) -> torch.Tensor:
        lengths = torch.full((len(waves),), waves.shape[1], device=waves.device)
        return model.forward(input_signal=waves, input_signal_length=lengths)[1]

    return Embedder(settings["name"], model, embed, settings["windows"], f"NeMo {version('nemo_toolkit')}")


def _load(source: str) -> EncDecSpeakerLabelModel:
    where = torch.device(device())
    if Path(source).exists():
        return EncDecSpeakerLabelModel.restore_from(source, map_location=where).eval()
    return EncDecSpeakerLabelModel.from_pretrained(source, map_location=where).eval()
