"""The plan of a dataset: clips, splits and chunks."""

from pathlib import Path

import pytest

from extract.attributes import AttributeTable
from extract.clips import Clip
from extract.plan import make_chunks


def test_each_speaker_is_in_one_split_and_shares_are_near_90_5_5():
    clips = [Clip(f"id{i % 2000}/{i}", f"id{i % 2000}", Path("v.mp4")) for i in range(4000)]
    chunks = make_chunks(clips, AttributeTable(), 64)
    assert sorted(clip.clip_id for chunk in chunks for clip in chunk.clips) == sorted(clip.clip_id for clip in clips)
    speakers = {
        split: {clip.speaker_id for chunk in chunks if chunk.split == split for clip in chunk.clips}
        for split in ("train", "validation", "test")
    }
    assert sum(map(len, speakers.values())) == 2000
    for split, share in (("train", 0.9), ("validation", 0.05), ("test", 0.05)):
        assert len(speakers[split]) / 2000 == pytest.approx(share, abs=0.02)
