"""TFRecord framing with its CRCs, and clips as `tf.train.Example`: what TFDS reads, without TensorFlow.

A TFRecord file is a run of frames: length (uint64), CRC of the length, data, CRC of the data (each CRC-32C,
masked as TFRecord does).
"""

from __future__ import annotations

import io
import struct
import threading
from types import ModuleType
from typing import BinaryIO

import google_crc32c
import numpy as np
from PIL import Image

from slf_common.errors import UserError
from tfrecords.schema import FACE_SIZE, UNKNOWN, Schema

HEADER, FOOTER = 12, 4
_IMPORTING = threading.Lock()


class CorruptShard(UserError):
    """A shard that is truncated or damaged; names the file and the record."""


def _masked_crc(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def frame(data: bytes) -> bytes:
    """One record as it stands in a TFRecord file."""
    length = struct.pack("<Q", len(data))
    return b"".join((length, struct.pack("<I", _masked_crc(length)), data, struct.pack("<I", _masked_crc(data))))


def index_shard(file: BinaryIO, size: int, name: str) -> tuple[np.ndarray, CorruptShard | None]:
    """Offsets and lengths [records, 2] of a shard's records; reads the headers only.

    Where a header is damaged or the file ends inside a record, the records before that, and what is wrong.
    """
    spans, offset = [], 0
    fault = None
    while offset < size:
        file.seek(offset)
        header = file.read(HEADER)
        length = struct.unpack("<Q", header[:8])[0] if len(header) == HEADER else 0
        if len(header) == HEADER and struct.pack("<I", _masked_crc(header[:8])) != header[8:]:
            fault = CorruptShard(f"{name}: record {len(spans)} has a damaged length; write this shard again")
            break
        if offset + HEADER + length + FOOTER > size:
            fault = CorruptShard(f"{name}: truncated in record {len(spans)}; write this shard again")
            break
        spans.append((offset, length))
        offset += HEADER + length + FOOTER
    return np.array(spans, np.int64).reshape(-1, 2), fault


def open_frame(data: bytes, name: str, record: int) -> bytes:
    """The data of one record, given with its CRC, which is checked; raises `CorruptShard`."""
    data, crc = data[:-FOOTER], data[-FOOTER:]
    if struct.pack("<I", _masked_crc(data)) != crc:
        raise CorruptShard(f"{name}: record {record} is damaged (CRC differs); write this shard again")
    return data


def _proto() -> ModuleType:
    """TFDS's `tf.train.Example`. Imported late, as that costs more than reading a thousand records, and by one thread
    at a time: TFDS's lazy imports lock each other out for ever when the threads of a reader start them together.
    """
    with _IMPORTING:
        from tensorflow_datasets.proto import tf_example_pb2
    return tf_example_pb2


def encode_clip(clip: dict, schema: Schema) -> bytes:
    """A clip as a serialised `tf.train.Example`.

    `clip` holds clip_id, speaker_id (text), face [128,128,3] uint8, optionally age (years), gender, ethnicity,
    language (indices) and each constituent as [rows, width] floats. What is missing is NaN or `UNKNOWN`.
    Raises `ValueError` where a shape is not the schema's.
    """
    example = _proto().Example()
    feature = example.features.feature
    for name in ("clip_id", "speaker_id"):
        feature[name].bytes_list.value.append(clip[name].encode())
    feature["face"].bytes_list.value.append(_encode_png(clip["face"]))
    feature["age"].float_list.value.append(float(clip.get("age", np.nan)))
    for name in schema.labels:
        feature[name].int64_list.value.append(int(clip.get(name, UNKNOWN)))
    for part in schema.constituents:
        value = np.asarray(clip.get(part.name, np.full((part.rows, part.width), np.nan)), np.float16)
        if value.shape != (part.rows, part.width):
            raise ValueError(f"{part.name} is {value.shape}, the schema says {(part.rows, part.width)}")
        feature[part.name].bytes_list.value.append(value.tobytes())
    return example.SerializeToString(deterministic=True)


def decode_clip(data: bytes, schema: Schema) -> dict:
    """The inverse of `encode_clip`: text, face uint8, age float32, labels int32, constituents float16."""
    feature = _proto().Example.FromString(data).features.feature
    clip: dict = {name: feature[name].bytes_list.value[0].decode() for name in ("clip_id", "speaker_id")}
    clip["face"] = np.asarray(Image.open(io.BytesIO(feature["face"].bytes_list.value[0])))
    clip["age"] = np.float32(feature["age"].float_list.value[0])
    for name in schema.labels:
        clip[name] = np.int32(feature[name].int64_list.value[0])
    for part in schema.constituents:
        raw = feature[part.name].bytes_list.value[0]
        clip[part.name] = np.frombuffer(raw, np.float16).reshape(part.rows, part.width)
    return clip


def decode_names(data: bytes) -> tuple[str, str]:
    """The clip's and the speaker's id of a clip that `encode_clip` gave, without decoding the rest."""
    feature = _proto().Example.FromString(data).features.feature
    clip_id, speaker_id = (feature[name].bytes_list.value[0].decode() for name in ("clip_id", "speaker_id"))
    return clip_id, speaker_id


def _encode_png(face: np.ndarray) -> bytes:
    if face.shape != (FACE_SIZE, FACE_SIZE, 3) or face.dtype != np.uint8:
        raise ValueError(f"a face is {FACE_SIZE}x{FACE_SIZE}x3 uint8, not {face.shape} {face.dtype}")
    buffer = io.BytesIO()
    Image.fromarray(face).save(buffer, "PNG")
    return buffer.getvalue()
