"""Decoding clips: 16 kHz mono sound, and frames as RGB."""

from __future__ import annotations

import errno
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.sidedata.sidedata import Type
from PIL import Image

from extract.clips import VIDEO, Clip
from slf_common.errors import UserError, decoding
from slf_common.pictures import PictureError, read_picture

SAMPLE_RATE = 16_000
CLIP_SECONDS = 24
CLIP_SAMPLES = SAMPLE_RATE * CLIP_SECONDS
WINDOW = SAMPLE_RATE // 10  # samples in which a level is measured
SILENCE = -60.0  # dBFS; a sound whose loudest window lies below holds no voice
CANCELLED = 20.0  # dB that the average of the channels lies below one of them where they cancel
UPRIGHT = np.array([1, 0, 0, 0, 1, 0, 0, 0, 1], np.int32)  # the display matrix that changes nothing
STRETCHED = 8.0  # pixels longer than 8:1 come from a damaged header


class MediaError(Exception):
    """A clip that cannot be used; says why in a few words, without the file's name."""


def decode_audio(path: Path, seconds: float = CLIP_SECONDS, lost: list[str] | None = None) -> np.ndarray:
    """The first `seconds` of a file's sound: float32 [samples] in [-1, 1], mono, 16 kHz.

    Packets that do not decode are skipped, as FFmpeg does; each adds a line to `lost`. Raises `MediaError` for what
    is wrong with the file, `UserError` where this machine cannot read it.
    """
    wanted, lost = round(seconds * SAMPLE_RATE), [] if lost is None else lost
    before = len(lost)
    with _open(path) as media:
        wave = _mono(media.frames(media.first("audio"), lost), wanted, lost)
    if not len(wave):
        skipped = lost[before:]
        raise MediaError(f"no part of the sound can be used: {skipped[0]}" if skipped else "the sound has no samples")
    level = _levels(wave).max()
    if level < SILENCE:
        heard = f"in its first {seconds:g} s" if len(wave) == wanted else "throughout"
        raise MediaError(f"the sound is silent {heard} (loudest 0.1 s: {level:.0f} dBFS)")
    return wave.astype(np.float32) / 32768


def _mono(frames: Iterable[av.AudioFrame], wanted: int, lost: list[str]) -> np.ndarray:
    """The first `wanted` samples of the frames as 16 kHz mono, int16."""
    runs, last, got = [], None, 0
    for frame in chain(frames, [None]):  # None: what the resampler still holds
        if frame and (form := (frame.format.name, frame.layout.name, frame.sample_rate)) != last:
            # A new resampler, as in FFmpeg, which gives up what the old one still holds: less than 2 ms.
            runs.append(_Run(frame.layout))
            last = form
        try:
            got += runs[-1].add(frame) if runs else 0
        except MediaError as error:
            lost.append(str(error))
        if got >= wanted:
            break
    return np.concatenate([np.zeros(0, np.int16), *(run.mono() for run in runs)])[:wanted]


class _Run:
    """Frames of one format, resampled to 16 kHz: their average, and the channels apart."""

    def __init__(self, layout: av.AudioLayout) -> None:
        self._layout, self._average, self._channels = layout, [np.zeros((1, 0), np.int16)], []
        # 16-bit: only for integers does FFmpeg average channels; floats it adds, so that stereo is louder.
        self._mixer = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
        self._splitter = av.AudioResampler(format="s16p", rate=SAMPLE_RATE) if layout.nb_channels > 1 else None

    def add(self, frame: av.AudioFrame | None) -> int:
        """Adds a frame or, for None, what the resamplers still hold; returns how many samples came out."""
        with decoding(MediaError, "audio frame"):
            infinite = (
                frame and frame.format.name.startswith(("flt", "dbl")) and not np.isfinite(frame.to_ndarray()).all()
            )
        if infinite:
            raise MediaError("audio frame with NaN or infinite samples")
        blocks = _resample(self._mixer, frame)
        self._average += blocks
        if self._splitter:
            self._channels += _resample(self._splitter, frame)
        return sum(block.shape[1] for block in blocks)

    def mono(self) -> np.ndarray:
        """int16 [samples]: FFmpeg's average of the channels, or the loudest one where they cancel."""
        average = np.concatenate(self._average, 1)[0]
        channels = np.concatenate(self._channels, 1)[:, : len(average)] if self._channels else average[None, :0]
        if channels.shape[1] < len(average) or not len(average):
            return average
        return _audible(average, np.delete(channels, _bass(self._layout), 0))


def _resample(resampler: av.AudioResampler, frame: av.AudioFrame | None) -> list[np.ndarray]:
    """Blocks int16 [channels, samples]."""
    with decoding(MediaError, "audio frame that cannot be resampled"):
        return [part.to_ndarray() for part in resampler.resample(frame) if part is not None]


def _bass(layout: av.AudioLayout) -> list[int]:
    """The channels for low frequencies, which FFmpeg leaves out of the average."""
    names = [channel.name for channel in layout.channels]
    if set(names) == {"NONE"}:  # the file names none: FFmpeg takes its own order
        return {3: [2], 6: [3], 7: [3], 8: [3]}.get(len(names), [])
    return [i for i, name in enumerate(names) if name.startswith("LFE")]


def _audible(average: np.ndarray, channels: np.ndarray) -> np.ndarray:
    """The average of the channels, int16 [n], or the loudest of `channels` [channels, n] where they cancel."""
    levels = np.array([_levels(wave) for wave in channels])
    best = int(levels.max(1).argmax())
    heard = levels[best] >= SILENCE
    if heard.any() and np.median((levels[best] - _levels(average))[heard]) > CANCELLED:
        return channels[best]
    return average


def _levels(wave: np.ndarray) -> np.ndarray:
    """The level of each 0.1 s of a sound, int16 [samples], in dBFS: RMS without the mean, full scale being 1."""
    windows = np.array_split(wave / 32768, max(1, len(wave) // WINDOW))
    with np.errstate(divide="ignore"):
        return 20 * np.log10([window.std() for window in windows])


def fit_audio(wave: np.ndarray, seconds: float = CLIP_SECONDS) -> np.ndarray:
    """Exactly `seconds` of sound, float32 [seconds * 16000]: the beginning of a long one, a short one repeated."""
    return np.resize(wave, round(seconds * SAMPLE_RATE))


def face_frames(clip: Clip, count: int = 1, lost: list[str] | None = None) -> Iterator[np.ndarray]:
    """Pictures of a clip to look for a face in, uint8 RGB [H, W, 3]: up to `count` frames of a video, its middle
    first, or a sound's one image. Decoded as they are asked for. Raises and adds to `lost` as `decode_audio` does.
    """
    if clip.path.suffix.lower() in VIDEO:
        yield from decode_frames(clip.path, [spread(i) for i in range(count)], lost)
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


def decode_frames(
    path: Path, positions: Sequence[float] = (0.5,), lost: list[str] | None = None
) -> Iterator[np.ndarray]:
    """Frames of a video, uint8 RGB [H, W, 3] each, at `positions` in [0, 1] of its duration, as FFmpeg shows them:
    upright, with square pixels.

    The same file gives the same frames. A position whose frame does not decode is left out. Raises and adds to `lost`
    as `decode_audio` does; `MediaError` where no position gives a frame.
    """
    lost = [] if lost is None else lost
    with _open(path) as media:
        start, length = _span(media)
    reasons = []
    for position in positions:
        try:
            picture = _picture_at(path, start + position * length, lost)
        except MediaError as error:
            reasons.append(str(error))
            lost.append(f"video frame: {error}")
        else:
            yield picture
    if len(reasons) == len(positions):
        raise MediaError(reasons[0])


def _span(media: _Media) -> tuple[float, float]:
    """Start and duration of the video stream in seconds."""
    stream = media.first("video")
    start = float((stream.start_time or 0) * stream.time_base)
    if stream.duration:
        return start, float(stream.duration * stream.time_base)
    if media.container.duration:
        return start, media.container.duration / av.time_base
    # Browsers record WebM without a duration.
    last = max((packet.pts for packet in media.packets(stream, []) if packet.pts is not None), default=0)
    return start, float(last * stream.time_base) - start


def _picture_at(path: Path, seconds: float, lost: list[str]) -> np.ndarray:
    """The first frame at or after `seconds`, or the last one, as RGB.

    The file is opened anew, so that no look suffers from another's damage. Where seeking leads to no frame, as after a
    damaged index, all frames from the first on are decoded.
    """
    skipped: list[str] = []
    for seek in (True, False):
        skipped.clear()
        with _open(path) as media:
            stream = media.first("video")
            if frame := _frame_at(media, stream, seconds, seek, skipped):
                lost += skipped
                return _displayed(media, stream, frame)
    raise MediaError(f"no part of the video can be used: {skipped[0]}" if skipped else "the video has no frames")


def _frame_at(
    media: _Media, stream: av.VideoStream, seconds: float, seek: bool, lost: list[str]
) -> av.VideoFrame | None:
    if seek:
        try:
            with media.guard("cannot seek"):
                media.container.seek(int(seconds / stream.time_base), stream=stream)
        except MediaError:
            return None
    found = None
    for frame in media.frames(stream, lost):
        found = frame
        if frame.pts is None or float(frame.pts * stream.time_base) >= seconds:
            break
    return found


def _displayed(media: _Media, stream: av.VideoStream, frame: av.VideoFrame) -> np.ndarray:
    """A frame as RGB [H, W, 3], turned and mirrored by its display matrix, then widened to square pixels."""
    with media.guard("the frame cannot be converted"):
        image = frame.to_ndarray(format="rgb24")
        data = frame.side_data.get(Type.DISPLAYMATRIX)
        matrix = np.frombuffer(bytes(data), np.int32) if data else UPRIGHT
        ratio = stream.sample_aspect_ratio
    angle = _angle(matrix)
    image = np.ascontiguousarray(_turned(image, angle, matrix))
    if not ratio or not 1 / STRETCHED <= ratio <= STRETCHED or ratio == 1:
        return image
    height, width = image.shape[:2]
    wide = round(width / ratio if angle in (90, 270) else width * ratio)
    return np.array(Image.fromarray(image).resize((max(1, wide), height), Image.Resampling.BICUBIC))


def _angle(matrix: np.ndarray) -> int:
    """Degrees from 0 to 359 by which FFmpeg turns a picture clockwise, of its display matrix."""
    cosine, sine = matrix[0] / (np.hypot(matrix[0], matrix[3]) or 1), matrix[1] / (np.hypot(matrix[1], matrix[4]) or 1)
    return round(np.degrees(np.arctan2(sine, cosine))) % 360


def _turned(image: np.ndarray, angle: int, matrix: np.ndarray) -> np.ndarray:
    """An image [H, W, 3] turned and mirrored as FFmpeg does (`autorotate`)."""
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
    """An image file as uint8 RGB [H, W, 3], upright. Raises as `decode_audio` does."""
    _check_file(path)
    try:
        return read_picture(path)
    except PictureError as error:
        raise MediaError(str(error)) from error
    except OSError as error:
        raise _unreadable(path, error) from error


class _Media:
    """A media file that FFmpeg reads through `read` and `seek`.

    So no fault of the machine is lost between FFmpeg's own errors, which do not tell it from damage; and FFmpeg, which
    may follow what a playlist says, opens nothing else.
    """

    container: av.container.InputContainer

    def __init__(self, path: Path, file: io.RawIOBase) -> None:
        self.name = f"media{path.suffix.lower()}"  # FFmpeg looks at the suffix, and knows UTF-8 alone
        self._path, self._file = path, file
        self._fault: OSError | None = None

    def read(self, size: int) -> bytes:
        try:
            return self._file.read(size)
        except OSError as error:
            self._fault = error
            return b""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return self._file.seek(offset, whence)
        except OSError:  # before the file's start, where damage led
            return -1

    def tell(self) -> int:
        return self._file.tell()

    @contextmanager
    def guard(self, what: str) -> Iterator[None]:
        """Around calls of PyAV: `MediaError` for whatever it raises, `UserError` if the file could not be read."""
        try:
            with decoding(MediaError, what):
                yield
        finally:
            if self._fault:
                raise _unreadable(self._path, self._fault)

    def first(self, kind: str) -> av.stream.Stream:
        """The first stream of a kind, "audio" or "video"."""
        streams = getattr(self.container.streams, kind)
        if not streams:
            raise MediaError(f"no {kind} stream")
        if streams[0].codec_context is None:
            raise MediaError(f"the {kind} stream's codec is unknown")
        # Chunks are done side by side, so a decoder has one core.
        streams[0].codec_context.thread_count = 1
        return streams[0]

    def packets(self, stream: av.stream.Stream, lost: list[str]) -> Iterator[av.Packet]:
        """The packets of a stream. Where the file cannot be followed further, it ends, as for FFmpeg."""
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
            if packet.size:  # the empty one at the end is for `decode`
                yield packet

    def frames(self, stream: av.stream.Stream, lost: list[str]) -> Iterator[av.AudioFrame | av.VideoFrame]:
        """The frames of a stream, without packets that do not decode."""
        for packet in chain(self.packets(stream, lost), [None]):  # None: what the decoder still holds
            try:
                with self.guard(f"{stream.type} packet"):
                    decoded = stream.decode(packet)
            except MediaError as error:
                lost.append(str(error))
            else:
                yield from decoded


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
            media.container = av.open(media, metadata_errors="replace", container_options=options)
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
    """A fault of the machine, which may be gone at the next try, so that it must not count as the clip's."""
    return UserError(
        f"{path}: cannot be read ({error.strerror or error}); this does not count as a failed clip: make it readable "
        "and run the same command again, finished shards are kept"
    )
