import numpy as np
import pytest
from records import make_clip

from tfrecords import codec, writer
from tfrecords.schema import UNKNOWN, Constituent, label_index


def test_a_clip_is_decoded_as_it_was_encoded(schema):
    clip = make_clip(3)
    back = codec.decode_clip(codec.encode_clip(clip, schema), schema)
    assert (back["clip_id"], back["speaker_id"]) == (clip["clip_id"], clip["speaker_id"])
    np.testing.assert_array_equal(back["face"], clip["face"])
    np.testing.assert_array_equal(back["mel"], clip["mel"].astype(np.float16))
    assert (back["age"], back["gender"], back["ethnicity"]) == (23.0, 1, 3)


def test_missing_values_are_unknown_not_zero(schema):
    clip = {key: make_clip(0)[key] for key in ("clip_id", "speaker_id", "face")}
    back = codec.decode_clip(codec.encode_clip(clip, schema), schema)
    assert np.isnan(back["mel"]).all() and np.isnan(back["age"])
    assert back["gender"] == back["language"] == UNKNOWN


@pytest.mark.parametrize("name, value", [("mel", np.zeros((110, 768))), ("face", np.zeros((64, 64, 3), np.uint8))])
def test_a_wrong_shape_is_refused(schema, name, value):
    with pytest.raises(ValueError, match="128|111"):
        codec.encode_clip({**make_clip(0), name: value}, schema)


def test_a_constituent_wider_than_the_matrix_is_refused():
    with pytest.raises(ValueError, match="768"):
        Constituent("wide", 1, 769, "embedding")


def test_the_frame_follows_the_tfrecord_format():
    data = b"123456789"
    crc = 0xE3069283  # CRC-32C's check value (RFC 3720)
    masked = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) % 2**32
    frame = codec.frame(data)
    assert frame[:8] == (9).to_bytes(8, "little") and frame[12:21] == data
    assert frame[21:] == masked.to_bytes(4, "little")


@pytest.fixture
def shard(tmp_path, schema):
    path = tmp_path / writer.shard_name("train", 0, 1)
    writer.write_shard(path, schema, (make_clip(k) for k in range(4)))
    return path


def index(path):
    with path.open("rb") as file:
        return codec.index_shard(file, path.stat().st_size, path.name)


def read_all(path):
    spans, fault = index(path)
    if fault:
        raise fault
    data = path.read_bytes()
    bounds = [(offset + codec.HEADER, offset + codec.HEADER + length + codec.FOOTER) for offset, length in spans]
    return [codec.open_frame(data[start:end], path.name, i) for i, (start, end) in enumerate(bounds)]


@pytest.mark.parametrize("cut", [1, 5, 1000])
def test_a_truncated_shard_is_reported_with_its_record(shard, cut):
    shard.write_bytes(shard.read_bytes()[:-cut])
    with pytest.raises(codec.CorruptShard, match=rf"{shard.name}: truncated in record 3"):
        read_all(shard)
    assert len(index(shard)[0]) == 3


def test_a_flipped_bit_is_reported_with_its_record(shard):
    offset, length = index(shard)[0][2]
    for position in (offset + 20, offset + length // 2):
        data = bytearray(shard.read_bytes())
        data[position] ^= 1
        shard.write_bytes(data)
        with pytest.raises(codec.CorruptShard, match=rf"{shard.name}: record 2"):
            read_all(shard)
        data[position] ^= 1
        shard.write_bytes(data)
    assert len(read_all(shard)) == 4


def test_a_damaged_length_is_found_while_indexing(shard):
    offset, _ = index(shard)[0][1]
    data = bytearray(shard.read_bytes())
    data[offset] ^= 1
    shard.write_bytes(data)
    spans, fault = index(shard)
    assert len(spans) == 1 and "record 1" in str(fault)


@pytest.mark.parametrize("text", ["female", "FEMALE", " Female "])
def test_labels_are_parsed_in_any_case(schema, text):
    assert label_index(schema.labels, "gender", text) == 0
    assert label_index(schema.labels, "gender", "") == UNKNOWN


def test_an_unknown_label_is_reported_with_the_valid_ones(schema):
    with pytest.raises(ValueError, match="ethnicity 'martian' must be one of asian, indian"):
        label_index(schema.labels, "ethnicity", "martian")
