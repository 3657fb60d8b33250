"""Decodes clips: sound as 16 kHz mono, frames as upright RGB."""

from __future__ import annotations

import errno
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TypeVar, overload

import av
import av.container
import av.stream
import numpy as np
from av.sidedata.sidedata import Type
from PIL import Image

from extract.clips import VIDEO, Clip
from slf_common.errors import UserError, decoding
from slf_common.pictures import PictureError, read_picture

SAMPLE_RATE = 16_000
CLIP_SECONDS = 24
CLIP_SAMPLES = SAMPLE_RATE * CLIP_SECONDS
LEVEL_WINDOW = SAMPLE_RATE // 10  # samples over which a level is measured
SILENCE = -60.0  # dBFS; a sound whose loudest window is below this contains no voice
CANCELLATION = 20.0  # dB by which the average of channels that cancel is below the loudest one
UPRIGHT = np.array([1, 0, 0, 0, 1, 0, 0, 0, 1], np.int32)  # the identity as a display matrix
MAX_PIXEL_ASPECT = 8.0  # a more extreme pixel aspect ratio comes from a damaged header

_Stream = TypeVar("_Stream", av.AudioStream, av.VideoStream)


class MediaError(Exception):
    """A clip that cannot be used; the message is the reason, without the file name."""


def decode_audio(path: Path, seconds: float = CLIP_SECONDS, lost: list[str] | None = None) -> np.ndarray:
    """Decodes the first `seconds` of a file's sound: float32 [samples] in [-1, 1], mono, 16 kHz.

    Packets that do not decode are skipped, as FFmpeg does; each appends a reason to `lost`. Raises `MediaError` if the
    file is damaged or has no usable sound, `UserError` if this machine cannot read it.
    """
    count, lost = round(seconds * SAMPLE_RATE), [] if lost is None else lost
    before = len(lost)
    with _open(path) as media:
        wave = _mono(media.frames(media.audio_stream(), lost), count, lost)
    if not len(wave):
        skipped = lost[before:]
        raise MediaError(f"no part of the sound is usable: {skipped[0]}" if skipped else "the sound has no samples")
    level = _levels(wave).max()
    if level < SILENCE:
        extent = f"in its first {seconds:g} s" if len(wave) == count else "throughout"
        raise MediaError(f"the sound is silent {extent} (loudest 0.1 s: {level:.0f} dBFS)")
    return wave.astype(np.float32) / 32768


def _mono(frames: Iterable[av.AudioFrame], count: int, lost: list[str]) -> np.ndarray:
    """Returns the first `count` samples of the frames as 16 kHz mono, int16."""
    segments: list[_Segment] = []
    last, available = None, 0
    for frame in chain(frames, [None]):  # None flushes the resampler
        if frame and (form := (frame.format.name, frame.layout.name, frame.sample_rate)) != last:
            # A new resampler, as in FFmpeg, which does not flush the old one either: less than 2 ms are lost.
            segments.append(_Segment(frame.layout))
            last = form
        try:
            available += segments[-1].add(frame) if segments else 0
        except MediaError as error:
            lost.append(str(error))
        if available >= count:
            break
    return np.concatenate([np.zeros(0, np.int16), *(segment.mono() for segment in segments)])[:count]


class _Segment:
    """Consecutive frames of one format, resampled to 16 kHz: the average of the channels, and each channel."""

    def __init__(self, layout: av.AudioLayout) -> None:
        self._layout = layout
        self._average = [np.zeros((1, 0), np.int16)]
        self._channels: list[np.ndarray] = []
        # 16-bit: FFmpeg averages the channels of integer formats but adds those of float formats.
        self._mixer = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
        self._splitter = av.AudioResampler(format="s16p", rate=SAMPLE_RATE) if layout.nb_channels > 1 else None

    def add(self, frame: av.AudioFrame | None) -> int:
        """Adds a frame, or flushes the resamplers for None; returns the number of new samples."""
        with decoding(MediaError, "audio frame"):
            finite = frame is None or _is_finite(frame)
        if not finite:
            raise MediaError("audio frame with NaN or infinite samples")
        blocks = _resample(self._mixer, frame)
        self._average += blocks
        if self._splitter:
            self._channels += _resample(self._splitter, frame)
        return sum(block.shape[1] for block in blocks)

    def mono(self) -> np.ndarray:
        """Returns int16 [samples]: FFmpeg's average of the channels, or the loudest channel if they cancel."""
        average = np.concatenate(self._average, 1)[0]
        channels = np.concatenate(self._channels, 1)[:, : len(average)] if self._channels else average[None, :0]
        if channels.shape[1] < len(average) or not len(average):
            return average
        return _loudest_if_cancelled(average, np.delete(channels, _lfe_channels(self._layout), 0))


def _is_finite(frame: av.AudioFrame) -> bool:
    return not frame.format.name.startswith(("flt", "dbl")) or bool(np.isfinite(frame.to_ndarray()).all())


def _resample(resampler: av.AudioResampler, frame: av.AudioFrame | None) -> list[np.ndarray]:
    """Returns blocks int16 [channels, samples]."""
    with decoding(MediaError, "audio frame that cannot be resampled"):
        return [part.to_ndarray() for part in resampler.resample(frame) if part is not None]


def _lfe_channels(layout: av.AudioLayout) -> list[int]:
    """Returns the indices of the low-frequency channels, which FFmpeg leaves out of the average."""
    names = [channel.name for channel in layout.channels]
    if set(names) == {"NONE"}:  # the file does not name them: FFmpeg's default order
        return {3: [2], 6: [3], 7: [3], 8: [3]}.get(len(names), [])
    return [i for i, name in enumerate(names) if name.startswith("LFE")]


def _loudest_if_cancelled(average: np.ndarray, channels: np.ndarray) -> np.ndarray:
    """Returns the average of the channels, int16 [n], or the loudest of `channels` [channels, n] if they cancel."""
    levels = np.array([_levels(wave) for wave in channels])
    loudest = int(levels.max(1).argmax())
    audible = levels[loudest] >= SILENCE
    if audible.any() and np.median((levels[loudest] - _levels(average))[audible]) > CANCELLATION:
        return channels[loudest]
    return average


def _levels(wave: np.ndarray) -> np.ndarray:
    """Returns the level of each 0.1 s of a sound, int16 [samples], in dBFS: RMS without the mean, relative to 1."""
    windows = np.array_split(wave / 32768, max(1, len(wave) // LEVEL_WINDOW))
    with np.errstate(divide="ignore"):
        return 20 * np.log10([window.std() for window in windows])


def fit_audio(wave: np.ndarray, seconds: float = CLIP_SECONDS) -> np.ndarray:
    """Truncates or repeats a sound to exactly `seconds`: float32 [seconds * 16000]."""
    return np.resize(wave, round(seconds * SAMPLE_RATE))


def face_frames(clip: Clip, count: int = 1, lost: list[str] | None = None) -> Iterator[np.ndarray]:
    """Yields images of a clip to search for a face, uint8 RGB [H, W, 3]: up to `count` frames of a video, starting in
    the middle, or the image of a sound. They are decoded lazily. Raises and appends to `lost` as `decode_audio` does.
    """
    if clip.path.suffix.lower() in VIDEO:
        yield from decode_frames(clip.path, [frame_position(i) for i in range(count)], lost)
    elif clip.image is None:
        raise MediaError("no image of the same name next to the sound (png, jpg, jpeg)")
    else:
        yield read_image(clip.image)


def frame_position(number: int) -> float:
    """Position of the n-th frame as a share of the duration: 1/2, 1/4, 3/4, 1/8, 5/8, ... (van der Corput)."""
    position, weight = 0.0, 0.5
    number += 1
    while number:
        number, bit = divmod(number, 2)
        position += bit * weight
        weight /= 2
    return position


def decode_frames(
    path: Path, positions: Sequence[float] = (0.5,), lost: list[str] | None = None
) -> Iterator[np.ndarray]:
    """Yields frames of a video, uint8 RGB [H, W, 3], at `positions` in [0, 1] of its duration: upright, with square
    pixels, as FFmpeg displays them.

    Deterministic. A position whose frame does not decode is skipped. Raises and appends to `lost` as `decode_audio`
    does; raises `MediaError` if no position gives a frame.
    """
    lost = [] if lost is None else lost
    with _open(path) as media:
        start, duration = _span(media)
    reasons = []
    for position in positions:
        try:
            image = _image_at(path, start + position * duration, lost)
        except MediaError as error:
            reasons.append(str(error))
            lost.append(f"video frame: {error}")
        else:
            yield image
    if len(reasons) == len(positions):
        raise MediaError(reasons[0])


def _span(media: _Media) -> tuple[float, float]:
    """Returns start and duration of the video stream in seconds."""
    stream = media.video_stream()
    unit = _time_base(stream)
    start = float((stream.start_time or 0) * unit)
    if stream.duration:
        return start, float(stream.duration * unit)
    if media.container.duration:
        return start, media.container.duration / av.time_base
    # WebM files recorded by browsers have no duration.
    last = max((packet.pts for packet in media.packets(stream, []) if packet.pts is not None), default=0)
    return start, float(last * unit) - start


def _time_base(stream: av.VideoStream) -> Fraction:
    """Returns the unit of the stream's timestamps in seconds; 1 if FFmpeg does not know it."""
    return stream.time_base or Fraction(1)


def _image_at(path: Path, seconds: float, lost: list[str]) -> np.ndarray:
    """Returns the first frame at or after `seconds`, or the last frame, as RGB.

    The file is opened again for each frame, so that damage at one position does not affect another. If seeking finds no
    frame, for example because the index is damaged, all frames are decoded from the start.
    """
    skipped: list[str] = []
    for seek in (True, False):
        skipped.clear()
        with _open(path) as media:
            stream = media.video_stream()
            if frame := _frame_at(media, stream, seconds, seek, skipped):
                lost += skipped
                return _display(media, stream, frame)
    raise MediaError(f"no part of the video is usable: {skipped[0]}" if skipped else "the video has no frames")


def _frame_at(
    media: _Media, stream: av.VideoStream, seconds: float, seek: bool, lost: list[str]
) -> av.VideoFrame | None:
    if seek:
        try:
            with media.guard("cannot seek"):
                media.container.seek(int(seconds / _time_base(stream)), stream=stream)
        except MediaError:
            return None
    found = None
    for frame in media.frames(stream, lost):
        found = frame
        if frame.pts is None or float(frame.pts * _time_base(stream)) >= seconds:
            break
    return found


def _display(media: _Media, stream: av.VideoStream, frame: av.VideoFrame) -> np.ndarray:
    """Returns a frame as RGB [H, W, 3], rotated and flipped by its display matrix, then resized to square pixels."""
    with media.guard("the frame cannot be converted"):
        image = frame.to_ndarray(format="rgb24", threads=1)
        data = frame.side_data.get(Type.DISPLAYMATRIX)  # type: ignore[call-overload]  # PyAV's stub: keys are str
        matrix = np.frombuffer(bytes(data), np.int32) if data else UPRIGHT
        ratio = stream.sample_aspect_ratio
    angle = _angle(matrix)
    image = np.ascontiguousarray(_rotate(image, angle, matrix))
    if not ratio or not 1 / MAX_PIXEL_ASPECT <= ratio <= MAX_PIXEL_ASPECT or ratio == 1:
        return image
    height, width = image.shape[:2]
    square_width = round(width / ratio if angle in (90, 270) else width * ratio)
    return np.array(Image.fromarray(image).resize((max(1, square_width), height), Image.Resampling.BICUBIC))


def _angle(matrix: np.ndarray) -> int:
    """Returns the clockwise rotation in degrees, 0 to 359, that FFmpeg derives from a display matrix."""
    cosine, sine = matrix[0] / (np.hypot(matrix[0], matrix[3]) or 1), matrix[1] / (np.hypot(matrix[1], matrix[4]) or 1)
    return round(np.degrees(np.arctan2(sine, cosine))) % 360


def _rotate(image: np.ndarray, angle: int, matrix: np.ndarray) -> np.ndarray:
    """Rotates and flips an image [H, W, 3] as FFmpeg's `autorotate` does."""
    if angle == 90:
        return image.swapaxes(0, 1) if matrix[3] > 0 else np.rot90(image, -1)
    if angle == 270:
        return np.rot90(image, 2).swapaxes(0, 1) if matrix[3] < 0 else np.rot90(image)
    if angle == 180 and matrix[0] < 0:
        image = image[:, ::-1]
    if angle in (0, 180):
        return image[::-1] if matrix[4] < 0 else image
    return np.asarray(Image.fromarray(image).rotate(-angle, Image.Resampling.BILINEAR))


def read_image(path: Path) -> np.ndarray:
    """Reads an image file as uint8 RGB [H, W, 3], upright. Raises as `decode_audio` does."""
    _check_file(path)
    try:
        return read_picture(path)
    except PictureError as error:
        raise MediaError(str(error)) from error
    except OSError as error:
        raise _unreadable(path, error) from error


class _Media:
    """A media file that FFmpeg reads through `read` and `seek` of this object.

    FFmpeg's own errors do not distinguish an I/O error from damaged data; here the I/O error is recorded. FFmpeg also
    cannot open other files or addresses, for example those in a playlist.
    """

    container: av.container.InputContainer

    def __init__(self, path: Path, file: io.RawIOBase) -> None:
        self.name = f"media{path.suffix.lower()}"  # FFmpeg uses the suffix and accepts only UTF-8
        self._path, self._file = path, file
        self._io_error: OSError | None = None

    def read(self, size: int) -> bytes:
        try:
            return self._file.read(size)
        except OSError as error:
            self._io_error = error
            return b""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return self._file.seek(offset, whence)
        except OSError:  # a position before the start, from damaged data
            return -1

    def tell(self) -> int:
        return self._file.tell()

    @contextmanager
    def guard(self, what: str) -> Iterator[None]:
        """Wraps calls of PyAV: raises `MediaError` for any of its errors, `UserError` if the file could not be read."""
        try:
            with decoding(MediaError, what):
                yield
        finally:
            if self._io_error:
                raise _unreadable(self._path, self._io_error)

    def audio_stream(self) -> av.AudioStream:
        """Returns the first audio stream. Raises `MediaError` if there is none."""
        return _prepared(self.container.streams.audio, "audio")

    def video_stream(self) -> av.VideoStream:
        """Returns the first video stream. Raises `MediaError` if there is none."""
        return _prepared(self.container.streams.video, "video")

    def packets(self, stream: av.AudioStream | av.VideoStream, lost: list[str]) -> Iterator[av.Packet]:
        """Yields the packets of a stream. Ends where the rest of the file cannot be read, as FFmpeg does."""
        demuxed = self.container.demux(stream)
        while True:
            try:
                with self.guard(f"the rest of the {stream.type}"):
                    packet = next(demuxed, None)
            except MediaError as error:
                lost.append(str(error))
                return
            if packet is None:
                return
            if packet.size:  # the last one is empty, to flush the decoder
                yield packet

    @overload
    def frames(self, stream: av.AudioStream, lost: list[str]) -> Iterator[av.AudioFrame]: ...
    @overload
    def frames(self, stream: av.VideoStream, lost: list[str]) -> Iterator[av.VideoFrame]: ...
    def frames(self, stream: av.AudioStream | av.VideoStream, lost: list[str]) -> Iterator:
        """Yields the frames of a stream, without packets that do not decode."""
        for packet in chain(self.packets(stream, lost), [None]):  # None flushes the decoder
            try:
                with self.guard(f"{stream.type} packet"):
                    decoded = stream.decode(packet)
            except MediaError as error:
                lost.append(str(error))
            else:
                yield from decoded


def _prepared(streams: Sequence[_Stream], kind: str) -> _Stream:
    """Returns the first of the streams, set to decode on one thread. Raises `MediaError` if there is none."""
    if not streams:
        raise MediaError(f"no {kind} stream")
    if streams[0].codec_context is None:
        raise MediaError(f"the codec of the {kind} stream is unknown")
    # One core for each decoder: chunks are processed in parallel.
    streams[0].codec_context.thread_count = 1
    return streams[0]


@contextmanager
def _open(path: Path) -> Iterator[_Media]:
    _check_file(path)
    try:
        file = path.open("rb", buffering=0)
    except OSError as error:
        raise _unreadable(path, error) from error
    with file:
        media = _Media(path, file)
        with media.guard("damaged, or not a media file"):
            options = {"protocol_whitelist": "none"}
            media.container = av.open(media, "r", metadata_errors="replace", container_options=options)
        with media.container:
            yield media


def _check_file(path: Path) -> None:
    try:
        size, regular = path.stat().st_size, path.is_file()
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
            raise MediaError(f"cannot be read ({error.strerror})") from error
        raise _unreadable(path, error) from error
    if not regular:
        raise MediaError("not a regular file")
    if not size:
        raise MediaError("the file is empty")


def _unreadable(path: Path, error: OSError) -> UserError:
    """An I/O error, which may be temporary and so must not count as a failure of the clip."""
    return UserError(
        f"{path}: cannot be read ({error.strerror or error}); this does not count as a failed clip: make it readable "
        "and run the same command again; finished shards are kept"
    )
