import numpy as np
import pytest
import tensorflow_datasets as tfds

from tfrecords.reader import Clips

pytest.importorskip("tensorflow", reason="TFDS decodes records with TensorFlow: pip install tensorflow-cpu")
pytestmark = pytest.mark.frameworks


def test_tfds_opens_what_we_write(dataset):
    builder = tfds.builder_from_directory(str(dataset))
    ours = {clip["clip_id"]: clip for clip in (Clips(dataset)[i] for i in range(24))}
    theirs = list(tfds.as_numpy(builder.as_dataset(split="train")))
    assert len(theirs) == len(ours) == 24
    for record in theirs:
        clip = ours[record["clip_id"].decode()]
        for key in ("face", "mel", "pyaudioanalysis", "age", "gender", "ethnicity", "language"):
            np.testing.assert_array_equal(record[key], clip[key])
        assert record["mel"].dtype == np.float16
    assert builder.info.features["gender"].names == ["female", "male"]
    assert builder.info.metadata["constituents"][1]["name"] == "mel"
