"""Measures of a face against the real one."""

from __future__ import annotations

import numpy as np

from tfrecords.cli import UserError


def psnr(images: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB [B], of uint8 images [B, H, W, 3]."""
    metrics = _skimage()
    return np.array([metrics.peak_signal_noise_ratio(r, i) for i, r in zip(images, real, strict=True)])


def ssim(images: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Structural similarity [B], of uint8 images [B, H, W, 3]: scikit-image's default 7x7 window, over RGB."""
    similarity = _skimage().structural_similarity
    return np.array([similarity(r, i, channel_axis=-1) for i, r in zip(images, real, strict=True)])


def guide_error(images: np.ndarray, real: np.ndarray, size: int = 8) -> np.ndarray:
    """Mean absolute difference [B] of the `size` x `size` area averages, in 1/255, of uint8 images [B, H, W, 3]."""

    def average(x: np.ndarray) -> np.ndarray:
        b, h, w, c = x.shape
        return x.reshape(b, size, h // size, size, w // size, c).astype(np.float64).mean((2, 4))

    return np.abs(average(images) - average(real)).mean((1, 2, 3))


def _skimage():
    try:
        import skimage.metrics
    except ImportError:
        raise UserError('measuring needs scikit-image: pip install -e ".[evaluate]"') from None
    return skimage.metrics
