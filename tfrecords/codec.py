"""TFRecord framing and clips as `tf.train.Example`, readable by TFDS and written without TensorFlow.

A TFRecord file is a sequence of frames: length (uint64), CRC of the length, data, CRC of the data. Each CRC is a masked
CRC-32C.
"""

from __future__ import annotations

import io
import struct
import threading
from collections.abc import Collection
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
    """A truncated or damaged shard; the message names the file and the record."""


def _masked_crc(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def frame(data: bytes) -> bytes:
    """Frames the data of one record as in a TFRecord file."""
    length = struct.pack("<Q", len(data))
    return b"".join((length, struct.pack("<I", _masked_crc(length)), data, struct.pack("<I", _masked_crc(data))))


def index_shard(file: BinaryIO, size: int, name: str) -> tuple[np.ndarray, CorruptShard | None]:
    """Finds the offset and length of each record, int64 [records, 2], and the first fault; reads the headers only.

    If a header is damaged or the file ends inside a record, only the records before it are returned.
    """
    spans: list[tuple[int, int]] = []
    offset, fault = 0, None
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
    """Checks the CRC at the end of a record and returns the data before it. Raises `CorruptShard`."""
    data, crc = data[:-FOOTER], data[-FOOTER:]
    if struct.pack("<I", _masked_crc(data)) != crc:
        raise CorruptShard(f"{name}: record {record} is damaged (CRC mismatch); write this shard again")
    return data


def _proto() -> ModuleType:
    """The module with TFDS's `tf.train.Example`.

    Imported on first use, since the import takes longer than reading a thousand records, and by one thread at a time:
    TFDS's lazy imports deadlock when several reader threads start them together.
    """
    with _IMPORTING:
        from tensorflow_datasets.proto import tf_example_pb2
    return tf_example_pb2


def encode_clip(clip: dict, schema: Schema) -> bytes:
    """Serialises a clip as a `tf.train.Example`.

    `clip` has clip_id and speaker_id (str), face uint8 [128, 128, 3], and optionally age (years), gender, ethnicity and
    language (class indices) and each constituent as floats [rows, width]. Missing values are stored as NaN or
    `UNKNOWN`. Raises `ValueError` if a shape differs from the schema.
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
            raise ValueError(f"{part.name} has shape {value.shape}, not {(part.rows, part.width)} as in the schema")
        feature[part.name].bytes_list.value.append(value.tobytes())
    return example.SerializeToString(deterministic=True)


def decode_clip(data: bytes, schema: Schema, fields: Collection[str] | None = None) -> dict:
    """The inverse of `encode_clip`: ids as str, face uint8, age float32, labels int32, constituents float16.

    `fields`: names of those to decode, of which the dataset need not have all; None: all.
    """
    feature = _proto().Example.FromString(data).features.feature
    wanted = lambda names: [name for name in names if fields is None or name in fields]  # noqa: E731
    clip: dict = {name: feature[name].bytes_list.value[0].decode() for name in wanted(("clip_id", "speaker_id"))}
    for name in wanted(("face",)):
        clip[name] = np.asarray(Image.open(io.BytesIO(feature[name].bytes_list.value[0])))
    for name in wanted(("age",)):
        clip[name] = np.float32(feature[name].float_list.value[0])
    for name in wanted(schema.labels):
        clip[name] = np.int32(feature[name].int64_list.value[0])
    parts = {part.name: part for part in schema.constituents}
    for name in wanted(parts):
        raw = feature[name].bytes_list.value[0]
        clip[name] = np.frombuffer(raw, np.float16).reshape(parts[name].rows, parts[name].width)
    return clip


def decode_names(data: bytes) -> tuple[str, str]:
    """Decodes only clip_id and speaker_id of an encoded clip."""
    feature = _proto().Example.FromString(data).features.feature
    clip_id, speaker_id = (feature[name].bytes_list.value[0].decode() for name in ("clip_id", "speaker_id"))
    return clip_id, speaker_id


def _encode_png(face: np.ndarray) -> bytes:
    if face.shape != (FACE_SIZE, FACE_SIZE, 3) or face.dtype != np.uint8:
        raise ValueError(f"a face must be uint8 [{FACE_SIZE}, {FACE_SIZE}, 3], not {face.dtype} {list(face.shape)}")
    buffer = io.BytesIO()
    Image.fromarray(face).save(buffer, "PNG")
    return buffer.getvalue()
