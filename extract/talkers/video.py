"""Writes frames and sound as an mp4 file."""

from __future__ import annotations

import os
from pathlib import Path

import av
import numpy as np


def write_mp4(path: Path, frames: np.ndarray, fps: int, audio: np.ndarray, rate: int) -> None:
    """Writes H.264 video and mono AAC audio; `path` appears only when the file is complete.

    `frames`: uint8 [T, H, W, 3] RGB with even H and W. `audio`: float32 [samples] in [-1, 1] at `rate` Hz. The same
    input gives the same bytes: the encoder uses one thread and no macroblock tree, whose SIMD code is not
    deterministic. Raises `ValueError` for odd sizes.
    """
    count, height, width, _ = frames.shape
    if height % 2 or width % 2:
        raise ValueError(f"H.264 needs an even width and height, not {width}x{height}")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.part")
    try:
        with av.open(
            str(unfinished.absolute()), "w", format="mp4"
        ) as container:  # FFmpeg takes a relative a:b for a URL
            quality = {"crf": "18", "preset": "veryfast", "x264-params": "mbtree=0:cpu-independent=1"}
            video = container.add_stream("libx264", rate=fps, options=quality)
            video.width, video.height, video.pix_fmt = width, height, "yuv420p"
            video.codec_context.thread_count = 1
            coder = {"aac_coder": "fast"}  # the default search takes six times as long
            sound = container.add_stream("aac", rate=rate, layout="mono", options=coder)
            sound.bit_rate = 64_000
            cuts = np.linspace(0, len(audio), count + 1).astype(int)
            for index, pixels in enumerate(frames):  # interleaved: each frame, then its sound
                container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
                if cuts[index + 1] > cuts[index]:
                    container.mux(sound.encode(_sound(audio, cuts[index], cuts[index + 1], rate)))
            container.mux(video.encode(None))
            container.mux(sound.encode(None))
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _sound(audio: np.ndarray, start: int, stop: int, rate: int) -> av.AudioFrame:
    """Returns the samples from start to stop as one frame with its timestamp."""
    samples = np.ascontiguousarray(audio[None, start:stop], dtype=np.float32)
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
    frame.sample_rate = rate
    frame.pts = int(start)
    return frame
