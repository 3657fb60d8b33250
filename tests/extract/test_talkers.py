"""The synthetic population: determinism, files, attributes CSV, and the information in voice and thumbnail."""

from __future__ import annotations

import csv
import resource
from collections import Counter
from dataclasses import fields, replace

import av
import numpy as np
import pytest

from extract.librosa_cache import import_librosa
from extract.talkers import __main__ as program
from extract.talkers.face import render
from extract.talkers.identity import ETHNICITIES, GENDERS, SKIN_TONES, Identity, draw_identity
from extract.talkers.population import FPS, generate, make_clip, splits
from extract.talkers.scene import draw_scene
from extract.talkers.video import write_mp4
from extract.talkers.voice import RATE, synthesize
from slf_common import cli
from slf_common.errors import UserError

librosa = import_librosa()
PEOPLE = 6  # 4 train, 1 validation, 1 test: 8 clips


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("talkers")
    assert generate(out, people=PEOPLE, seed=3, workers=2) == 8
    return out


def thumbnail(frame: np.ndarray) -> np.ndarray:
    """Returns the area average at 8x8: float [8, 8, 3]."""
    side = frame.shape[0] // 8
    return frame.reshape(8, side, 8, side, 3).mean((1, 3))


def draw(identity: Identity, scene_seed: int = 0) -> np.ndarray:
    return render(identity, draw_scene(np.random.default_rng(scene_seed)), [0.2])[0]


def test_same_seed_same_clip_other_seed_other_clip():
    frames, audio = make_clip(draw_identity(3, 1), 1)
    again_frames, again_audio = make_clip(draw_identity(3, 1), 1)
    assert frames.tobytes() == again_frames.tobytes()
    assert audio.tobytes() == again_audio.tobytes()
    other_frames, other_audio = make_clip(draw_identity(4, 1), 1)
    assert other_frames.tobytes() != frames.tobytes()
    assert other_audio.tobytes() != audio.tobytes()


def test_clips_of_a_person_differ_only_in_the_scene():
    person = draw_identity(3, 5)
    assert person == draw_identity(3, 5)
    first, _ = make_clip(person, 1)
    second, _ = make_clip(person, 2)
    assert first[0].shape == second[0].shape == (160, 160, 3)
    assert np.abs(first[0].astype(int) - second[0]).mean() > 2.0
    scenes = [draw_scene(np.random.default_rng([0, clip])) for clip in range(2)]
    assert all(getattr(scenes[0], f.name) != getattr(scenes[1], f.name) for f in fields(scenes[0])
               if f.name != "clothes")  # fmt: skip


def test_mouth_follows_the_voice():
    person = draw_identity(3, 2)
    scene = draw_scene(np.random.default_rng(0))
    closed, wide = render(person, scene, [0.0, 1.0])
    rows = np.abs(closed.astype(int) - wide).sum((1, 2)).nonzero()[0]
    assert rows.min() > 100 and rows.max() < 145  # only around the mouth


def test_population_covers_every_label_and_age():
    people = [draw_identity(0, index) for index in range(400)]
    assert {p.gender for p in people} == set(GENDERS)
    assert {p.ethnicity for p in people} == set(ETHNICITIES)
    ages = np.array([p.age for p in people])
    assert 18.0 <= ages.min() < 21.0 and 77.0 < ages.max() <= 80.0
    assert {p.face.glasses for p in people} == {"none", "round", "square"}
    assert all(p.face.beard == "none" for p in people if p.gender == "female")
    for label in ETHNICITIES:  # palettes overlap: no skin tone is specific to one label
        tones = {p.palette.skin for p in people if p.ethnicity == label}
        assert len(tones) == len(SKIN_TONES)


def test_files_hold_h264_and_aac_of_the_right_length(folder):
    paths = sorted(folder.glob("p*/*/00001.mp4"))
    assert len(paths) == 8
    for path in paths:
        index, clip = int(path.parts[-3][1:]), int(path.parts[-2])
        frames, _ = make_clip(draw_identity(3, index), clip)
        seconds = len(frames) / FPS
        assert 3.0 <= seconds <= 12.0
        with av.open(str(path)) as container:
            (video,), (sound,) = container.streams.video, container.streams.audio
            assert video.codec_context.name == "h264" and sound.codec_context.name == "aac"
            assert (video.width, video.height, sound.rate) == (160, 160, RATE)
            assert container.duration / av.time_base == pytest.approx(seconds, abs=0.3)
            decoded = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
        assert len(decoded) == len(frames)
        assert np.abs(decoded[0].astype(int) - frames[0]).mean() < 6.0
        with av.open(str(path)) as container:
            samples = sum(f.samples for f in container.decode(audio=0))
        assert samples / RATE == pytest.approx(seconds, abs=0.2)


def test_the_attributes_csv_lists_every_person(folder):
    with open(folder / "people.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["speaker_id", "age", "gender", "ethnicity", "split"]
    assert Counter(row["split"] for row in rows) == {"train": 4, "validation": 1, "test": 1}
    for index, row in enumerate(rows):
        person = draw_identity(3, index)
        listed = (row["speaker_id"], float(row["age"]), row["gender"], row["ethnicity"])
        assert listed == (person.speaker_id, person.age, person.gender, person.ethnicity)
        clips = len(list((folder / row["speaker_id"]).iterdir()))
        assert clips == (1 if row["split"] == "train" else 2)


def test_default_population_has_the_documented_splits():
    assert Counter(splits(1024)) == {"train": 832, "validation": 64, "test": 128}
    assert Counter(splits(3)) == {"train": 1, "validation": 1, "test": 1}


def test_a_rerun_keeps_finished_files_and_writes_the_rest(folder):
    paths = sorted(folder.glob("p*/*/00001.mp4"))
    lost, kept = paths[2], [p for p in paths if p != paths[2]]
    content = lost.read_bytes()
    lost.unlink()
    before = {path: path.stat().st_mtime_ns for path in kept}
    assert generate(folder, people=PEOPLE, seed=3, workers=1) == 1
    assert {path: path.stat().st_mtime_ns for path in kept} == before
    assert lost.read_bytes() == content  # one process or two: the same bytes
    assert not list(folder.rglob("*.part"))


def test_a_different_population_in_the_same_folder_is_rejected(folder):
    with pytest.raises(UserError, match="another population"):
        program.main(["--out", str(folder), "--people", str(PEOPLE), "--seed", "4"])


@pytest.mark.parametrize("flags", [["--people", "2"], ["--people", "x"], ["--seed", "-1"], ["--workers", "0"]])
def test_bad_arguments_end_with_status_2(tmp_path, flags):
    out = tmp_path / "videos"
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: program.main(["--out", str(out), *flags]))
    assert stop.value.code == 2
    assert not out.exists()


def test_odd_frame_sizes_are_rejected(tmp_path):
    with pytest.raises(ValueError, match="even"):
        write_mp4(tmp_path / "x.mp4", np.zeros((2, 9, 8, 3), np.uint8), 4, np.zeros(800), RATE)
    assert not list(tmp_path.iterdir())


def measure_pitch(audio: np.ndarray) -> float:
    """The median over loud frames, by autocorrelation."""
    frames = librosa.util.frame(audio, frame_length=2048, hop_length=512)
    correlation = np.fft.irfft(np.abs(np.fft.rfft(frames, 4096, axis=0)) ** 2, axis=0)
    loud = correlation[0] > 0.3 * np.median(correlation[0])
    shortest, longest = RATE // 400, RATE // 60
    return float(np.median(RATE / (shortest + correlation[shortest:longest, loud].argmax(0))))


def test_measured_pitch_follows_the_identity():
    expected, measured = [], []
    for index in range(8):
        person = draw_identity(0, index)
        expected.append(person.voice.f0)
        measured.append(measure_pitch(synthesize(person, 3.0, np.random.default_rng(index))))
    assert np.median(np.abs(np.log2(np.array(measured) / expected))) < 0.12
    assert np.corrcoef(np.log(expected), np.log(measured))[0, 1] > 0.9


def test_tract_and_tilt_shape_the_spectrum():
    person = draw_identity(0, 0)

    def centroid(**changes: float) -> float:
        changed = replace(person, voice=replace(person.voice, **changes))
        audio = synthesize(changed, 4.0, np.random.default_rng(0))
        return float(librosa.feature.spectral_centroid(y=audio, sr=RATE).mean())

    assert centroid(tilt=2.0) > 1.2 * centroid(tilt=-6.0)
    assert centroid(formant_scale=1.2) > centroid(formant_scale=0.9)


def test_the_thumbnail_hides_structure_that_is_visible_in_the_face():
    """Structure must change the face much more than the thumbnail; light must do the reverse."""
    full, coarse = [], []
    for index in range(12):
        person = draw_identity(0, index)
        wavy = replace(person, face=replace(person.face, hair_texture="wavy", freckles=True))
        straight = replace(wavy, face=replace(wavy.face, hair_texture="straight", freckles=False))
        a, b, lit = draw(wavy), draw(straight), draw(wavy, scene_seed=1)
        full.append(np.mean((a.astype(float) - b) ** 2))
        coarse.append([np.mean((thumbnail(a) - thumbnail(x)) ** 2) for x in (b, lit)])
    structure, light = np.mean(coarse, axis=0)
    assert structure < 0.25 * np.mean(full)
    assert structure < 0.25 * light


def test_a_full_disk_leaves_no_partial_clip(tmp_path):
    """(fault 17)"""
    frames, audio = make_clip(draw_identity(0, 0), 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # no file can be larger
    try:
        with pytest.raises(OSError) as error:
            write_mp4(tmp_path / "a" / "x.mp4", frames, FPS, audio, RATE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "File too large" in cli.explain(error.value) and not list((tmp_path / "a").iterdir())
