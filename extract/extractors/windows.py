"""Speaker embeddings over windows of each clip; shared by the pretrained speaker models."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch

from extract.extractors.registry import Windows, format_windows
from extract.extractors.weights import digest
from extract.frameworks import apply_in_batches, device
from extract.media import CLIP_SECONDS, SAMPLE_RATE
from tfrecords.schema import EMBEDDING, Constituent


class WindowEmbedder:
    """Maps waves float32 [clips, 384000] to one embedding for each window: float32 [clips, windows, width].

    Args:
      name: name of the constituent.
      network: its weights give the digest.
      embed: maps sound [N, samples] on the network's device to embeddings [N, width].
      windows: (length, hop) in seconds; the rows are in this order.
      extractor: framework and version.
    """

    def __init__(
        self,
        name: str,
        network: torch.nn.Module,
        embed: Callable[[torch.Tensor], torch.Tensor],
        windows: Windows,
        extractor: str,
    ) -> None:
        self._name, self._network, self._embed = name, network, embed
        self._windows, self._extractor = windows, extractor

    @cached_property
    def constituent(self) -> Constituent:
        rows, width = self(np.zeros((1, CLIP_SECONDS * SAMPLE_RATE), np.float32)).shape[1:]
        return Constituent(
            self._name,
            rows,
            width,
            EMBEDDING,
            self._extractor,
            digest(self._network),
            format_windows(self._windows),
        )

    def __call__(self, waves: np.ndarray) -> np.ndarray:
        return apply_in_batches(self._embed_batch, waves)

    def _embed_batch(self, waves: np.ndarray) -> np.ndarray:
        return np.concatenate([self._embed_windows(waves, length, hop) for length, hop in self._windows], axis=1)

    def _embed_windows(self, waves: np.ndarray, length: float, hop: float) -> np.ndarray:
        """Embeds all windows of one length of all clips as one batch: float32 [clips, windows, width]."""
        samples, step = round(length * SAMPLE_RATE), round(hop * SAMPLE_RATE)
        windows = np.lib.stride_tricks.sliding_window_view(waves, samples, axis=1, writeable=True)[:, ::step]
        with torch.inference_mode():
            rows = self._embed(torch.from_numpy(windows.reshape(-1, samples)).to(device()))
        return rows.float().cpu().numpy().reshape(*windows.shape[:2], -1)
