"""Decoding clips: 16 kHz mono sound, and frames as RGB."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageOps

from extract.clips import VIDEO, Clip

SAMPLE_RATE = 16_000
CLIP_SECONDS = 24
CLIP_SAMPLES = SAMPLE_RATE * CLIP_SECONDS


class MediaError(Exception):
    """A clip that cannot be used; says why in a few words, without the file's name."""


def decode_audio(path: Path, seconds: float = CLIP_SECONDS) -> np.ndarray:
    """The first `seconds` of a file's sound: float32 [samples] in [-1, 1], mono, 16 kHz. Raises `MediaError`."""
    wanted = round(seconds * SAMPLE_RATE)
    blocks, got = [], 0
    with _open(path) as container:
        for block in _samples(container):
            blocks.append(block)
            got += len(block)
            if got >= wanted:
                break
    wave = np.concatenate(blocks)[:wanted] if blocks else np.zeros(0, np.int16)
    if not len(wave):
        raise MediaError("the sound has no samples")
    if not wave.any():
        raise MediaError("the sound is silent throughout")
    return wave.astype(np.float32) / 32768


def _samples(container: av.container.InputContainer) -> Iterator[np.ndarray]:
    stream = _first(container.streams.audio, "audio")
    # 16-bit: only for integers does FFmpeg average channels; floats it adds, so that stereo is louder.
    resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
    for frame in chain(container.decode(stream), [None]):  # None: the resampler's remainder
        yield from _resample(resampler, frame)


def _resample(resampler: av.AudioResampler, frame: av.AudioFrame | None) -> list[np.ndarray]:
    try:
        return [part.to_ndarray()[0] for part in resampler.resample(frame)]
    except ValueError as error:
        raise MediaError("the sound changes its format midway") from error


def fit_audio(wave: np.ndarray, seconds: float = CLIP_SECONDS) -> np.ndarray:
    """Exactly `seconds` of sound, float32 [seconds * 16000]: the beginning of a long one, a short one repeated."""
    return np.resize(wave, round(seconds * SAMPLE_RATE))


def face_frames(clip: Clip, count: int = 1) -> Iterator[np.ndarray]:
    """Pictures of a clip to look for a face in, uint8 RGB [H, W, 3]: up to `count` frames of a video, its middle
    first, or a sound's one image. Decoded as they are asked for. Raises `MediaError`.
    """
    if clip.path.suffix.lower() in VIDEO:
        yield from decode_frames(clip.path, [spread(i) for i in range(count)])
    elif clip.image is None:
        raise MediaError("no image of the same name beside the sound (png, jpg, jpeg)")
    else:
        yield read_image(clip.image)


def spread(number: int) -> float:
    """Where to look, as a share of the duration: 1/2, 1/4, 3/4, 1/8, 5/8, ... (van der Corput's sequence)."""
    share, place = 0.0, 0.5
    number += 1
    while number:
        number, bit = divmod(number, 2)
        share += bit * place
        place /= 2
    return share


def decode_frames(path: Path, positions: Sequence[float] = (0.5,)) -> Iterator[np.ndarray]:
    """Frames of a video, uint8 RGB [H, W, 3] each, at `positions` in [0, 1] of its duration; upright.

    The same file gives the same frames. Raises `MediaError`.
    """
    with _open(path) as container:
        stream = _first(container.streams.video, "video")
        start, length = _span(container, stream)
        for position in positions:
            yield _rgb(_frame_at(container, stream, start + position * length))


def _span(container: av.container.InputContainer, stream: av.VideoStream) -> tuple[float, float]:
    """Start and duration of a video stream in seconds."""
    start = float((stream.start_time or 0) * stream.time_base)
    if stream.duration:
        return start, float(stream.duration * stream.time_base)
    if container.duration:
        return start, container.duration / av.time_base
    # Browsers record WebM without a duration.
    last = max((packet.pts for packet in container.demux(stream) if packet.pts is not None), default=0)
    return start, float(last * stream.time_base) - start


def _frame_at(container: av.container.InputContainer, stream: av.VideoStream, seconds: float) -> av.VideoFrame:
    """The first frame at or after `seconds`, or the last one."""
    container.seek(int(seconds / stream.time_base), stream=stream)
    found = None
    for frame in container.decode(stream):
        found = frame
        if frame.time is None or frame.time >= seconds:
            break
    if found is None:
        raise MediaError("the video has no frames")
    return found


def _rgb(frame: av.VideoFrame) -> np.ndarray:
    image = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90)))


def read_image(path: Path) -> np.ndarray:
    """An image file as uint8 RGB [H, W, 3], upright. Raises `MediaError`."""
    try:
        with Image.open(path) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MediaError(f"the image cannot be read ({type(error).__name__})") from error


@contextmanager
def _open(path: Path) -> Iterator[av.container.InputContainer]:
    """Opens a media file; whatever FFmpeg finds wrong with it, then or later, is a `MediaError`."""
    _check_file(path)
    try:
        # Only local files: a playlist under a video's name must not reach out to the network.
        options = {"protocol_whitelist": "file"}
        with av.open(str(path.absolute()), metadata_errors="replace", container_options=options) as container:
            yield container
    except UnicodeEncodeError as error:
        raise MediaError("the file's name is not UTF-8; rename it") from error
    except av.FFmpegError as error:
        raise MediaError(f"damaged, or not a media file ({error.strerror})") from error


def _first(streams: Sequence[av.stream.Stream], kind: str) -> av.stream.Stream:
    if not streams:
        raise MediaError(f"no {kind} stream")
    if streams[0].codec_context is None:
        raise MediaError(f"the {kind} stream's codec is unknown")
    # Chunks are done side by side, so a decoder has one core.
    streams[0].codec_context.thread_count = 1
    return streams[0]


def _check_file(path: Path) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise MediaError(f"cannot be read ({error.strerror})") from error
    if not path.is_file():
        raise MediaError("not a regular file")
    if not size:
        raise MediaError("the file is empty")
