"""Small real recordings, made with numpy, PyAV and Pillow."""

import struct
import wave
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

FPS = 10


def voice(seconds: float, rate: int = 16_000, pitch: float = 120.0, channels: int = 1) -> np.ndarray:
    """Returns a buzz with a slow modulation plus noise: float32 [channels, samples]."""
    time = np.arange(round(seconds * rate)) / rate
    buzz = sum(np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 20))
    noise = np.random.default_rng(round(pitch)).normal(0, 0.02, len(time))
    sound = 0.15 * buzz * (1 + 0.5 * np.sin(2 * np.pi * 3 * time)) + noise
    return np.tile(sound.astype(np.float32), (channels, 1))


def moving_frames(seconds: float, height: int = 48, width: int = 64) -> np.ndarray:
    """Returns a bright bar that moves from left to right: uint8 [frames, height, width, 3]."""
    count = max(1, round(seconds * FPS))
    frames = np.full((count, height, width, 3), 40, np.uint8)
    for i in range(count):
        x = (width - 8) * i // max(1, count - 1)
        frames[i, :, x : x + 8] = (250, 180, 60)
    return frames


def write_video(
    path: Path, sound=None, frames=None, rate: int = 16_000, codecs=("aac", "mpeg4"), pixel=Fraction(1), fps: int = FPS
) -> Path:
    """Writes a video with sound float32 [channels, samples] and frames uint8 [n, H, W, 3], both optional.

    `pixel`: the pixel aspect ratio, width by height.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        video = container.add_stream(codecs[1], rate=fps) if frames is not None else None
        layout = {2: "stereo", 6: "5.1"}.get(len(sound) if sound is not None else 1, "mono")
        audio = container.add_stream(codecs[0], rate=rate, layout=layout) if sound is not None else None
        if video:
            video.height, video.width, video.pix_fmt = *frames.shape[1:3], "yuv420p"
            video.codec_context.sample_aspect_ratio = pixel
            for frame in frames:
                container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(video.encode(None))
        if audio:
            block = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound), format="fltp", layout=layout)
            block.sample_rate = rate
            container.mux(audio.encode(block))
            container.mux(audio.encode(None))
    return path


def set_matrix(path: Path, matrix: Sequence[float]) -> Path:
    """Sets the display matrix (a, b, c, d) of an MP4's first track: x' = a x + c y, y' = b x + d y."""
    a, b, c, d = (round(value * 0x10000) for value in matrix)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 0x40000000)
    path.write_bytes(data)
    return path


def damage_packets(path: Path, kind: str, numbers: Iterable[int]) -> int:
    """Overwrites some packets of the first stream of a kind with zeros; returns the stream's number of packets."""
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(**{kind: 0}) if packet.size]
    data = bytearray(path.read_bytes())
    for number in numbers:
        position, size = packets[number]
        data[position : position + size] = bytes(size)
    path.write_bytes(data)
    return len(packets)


def write_wav(path: Path, sound: np.ndarray, rate: int = 16_000) -> Path:
    """Writes a 16-bit WAV of sound float32 [channels, samples]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(sound))
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((sound.T * 32767).astype("<i2").tobytes())
    return path


def write_clip(path: Path, seconds: float = 1.5, pitch: float = 120.0) -> Path:
    """Writes a video with a voice."""
    return write_video(path, voice(seconds, pitch=pitch), moving_frames(seconds))


def write_image(path: Path, height: int = 60, width: int = 80) -> Path:
    """Writes an image whose red increases to the right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((height, width, 3), 30, np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)
    Image.fromarray(pixels).save(path)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """Returns all files that extraction wrote."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
