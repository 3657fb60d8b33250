"""The command `extract.run`: its records, resuming after a kill, error messages."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from recordings import contents, moving_frames, voice, write_clip, write_image, write_video, write_wav

from configs import base
from extract import chunk, runners
from extract.clips import find_clips
from extract.extractors import registry
from extract.faces import crop_face, whole_frame
from extract.media import decode_audio, decode_frames, fit_audio
from slf_common.errors import UserError
from tfrecords.reader import Clips
from tfrecords.schema import LABELS, UNKNOWN

ROOT = Path(__file__).parents[2]


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("slf-*.tfrecord-*"))


@pytest.fixture(scope="session")
def complete(people_folder, tmp_path_factory, extract) -> Path:
    """The dataset of `people_folder`, written by one process without interruption."""
    out = tmp_path_factory.mktemp("complete") / "data"
    extract("--videos", people_folder, "--out", out)
    return out


def test_records_hold_the_extracted_faces_and_features(complete, people_folder):
    train = Clips(complete, "train")
    assert len(train) == 6 and len(Clips(complete, "validation")) == len(Clips(complete, "test")) == 2
    loaded = registry.load({"extractors": ("pyaudioanalysis", "mel")})
    assert train.schema.constituents == tuple(extractor.constituent for extractor in loaded)
    sources = {clip.clip_id: clip for clip in find_clips(people_folder).clips}
    for i in range(len(train)):
        record = train[i]
        source = sources[record["clip_id"]]
        assert record["speaker_id"] == source.speaker_id
        frame = next(decode_frames(source.path))
        np.testing.assert_array_equal(record["face"], crop_face(frame, whole_frame(frame)[0]))
        wave = fit_audio(decode_audio(source.path))[None]
        for extractor in loaded:
            features = extractor(wave)[0].astype(np.float16)
            np.testing.assert_array_equal(record[extractor.constituent.name], features)


def test_attributes_are_stored_whatever_their_case(complete):
    records = [clips[i] for clips in (Clips(complete), Clips(complete, "test")) for i in range(len(clips))]
    for record in records:
        number = int(record["speaker_id"][2:])
        assert record["age"] == 20 + number
        assert LABELS["gender"][record["gender"]] == ("female" if number % 2 else "male")
        assert LABELS["language"][record["language"]] == "english"
        assert record["ethnicity"] == (LABELS["ethnicity"].index("latino hispanic") if number % 2 else UNKNOWN)


def test_statistics_are_those_of_the_training_split(complete):
    train = Clips(complete, "train")
    rows = np.concatenate([train[i]["mel"] for i in range(len(train))]).astype(np.float64)
    np.testing.assert_allclose(train.statistics["mel"]["mean"], rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(train.statistics["mel"]["std"], rows.std(0), rtol=1e-3)


def test_running_again_changes_nothing(complete, people_folder, extract, capsys):
    before, times = contents(complete), [path.stat().st_mtime_ns for path in shards(complete)]
    extract("--videos", people_folder, "--out", complete)
    assert contents(complete) == before
    assert [path.stat().st_mtime_ns for path in shards(complete)] == times
    assert "6 train, 2 validation, 2 test clips" in capsys.readouterr().out


def test_only_a_missing_shard_is_written_again(people_folder, complete, tmp_path, extract):
    out = tmp_path / "data"
    shutil.copytree(complete, out)
    lost, *others = shards(out)
    times = [path.stat().st_mtime_ns for path in others]
    lost.unlink()
    extract("--videos", people_folder, "--out", out)
    assert [path.stat().st_mtime_ns for path in others] == times
    assert contents(out) == contents(complete)


def test_a_killed_run_resumes_to_the_same_dataset(people_folder, complete, tmp_path, command, extract):
    out = tmp_path / "data"
    arguments = [*command, "--videos", people_folder, "--out", out, "--config.extract.workers=2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    killed = subprocess.Popen(list(map(str, arguments)), cwd=ROOT, env=environment, stderr=subprocess.PIPE)
    wait_for(lambda: shards(out))
    workers = worker_processes(killed.pid)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (out / "metadata.json").exists() and len(workers) == 2
    wait_for(lambda: not any(alive(pid) for pid in workers))  # workers end with their parent
    (out / "chunks" / ".slf-torn.json.tmp-1").write_bytes(b"left by a kill during a write")
    extract("--videos", people_folder, "--out", out)  # one process: the shards do not depend on the worker
    assert contents(out) == contents(complete)


def wait_for(condition, seconds: float = 400) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.01)


def worker_processes(pid: int) -> list[int]:
    """Returns the children of a process that were spawned by `multiprocessing`."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    "stop, status, message",
    [
        # As a terminal does: also to the workers.
        (lambda pid, workers: os.killpg(pid, signal.SIGINT), 130, "interrupted; run the same command again"),
        # As the kernel does if memory runs out.
        (lambda pid, workers: os.kill(workers[-1], signal.SIGKILL), 2, "error: a worker was killed"),
    ],
    ids=["interrupt", "killed worker"],
)
def test_an_interrupt_or_a_killed_worker_ends_the_run_cleanly(people_folder, tmp_path, command, stop, status, message):
    out = tmp_path / "data"
    arguments = [*command, "--videos", people_folder, "--out", out, "--config.extract.workers=2"]
    # Background jobs of a shell ignore SIGINT and children inherit that, unless there is a handler.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    run = subprocess.Popen(
        list(map(str, arguments)),
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    signal.signal(signal.SIGINT, before)
    wait_for(lambda: len(worker_processes(run.pid)) == 2)
    workers = worker_processes(run.pid)
    stop(run.pid, workers)
    _, errors = run.communicate(timeout=400)
    assert run.returncode == status and message in errors and "Traceback" not in errors
    wait_for(lambda: not any(alive(pid) for pid in workers))


def test_unusable_clips_are_listed_with_reasons_and_the_others_written(tmp_path, extract, capsys):
    videos, out = tmp_path / "videos", tmp_path / "data"
    good = [
        write_clip(videos / "a" / 'it\'s a "clip" $(x) \u00fc\u4f60.mp4'),
        write_video(videos / "a" / "stereo.mp4", voice(1, 44_100, channels=2), moving_frames(1), rate=44_100),
        write_video(videos / "b" / "brief.mp4", voice(0.1), moving_frames(0.1)),
        write_wav(videos / "c" / "sound.wav", voice(1)),
    ]
    write_image(videos / "c" / "sound.jpg")
    expected = {
        "a/empty": "the file is empty",
        "b/text": "damaged, or not a media file",
        "b/truncated": "damaged, or not a media file",
        "c/mute": "no audio stream",
        "c/blind": "no video stream",
        "c/faceless": "no image of the same name",
    }
    (videos / "a" / "empty.mp4").touch()
    (videos / "b" / "text.mp4").write_text("not a video " * 99)
    (videos / "b" / "truncated.mp4").write_bytes(write_clip(tmp_path / "x.mp4").read_bytes()[:3_000])
    write_video(videos / "c" / "mute.mp4", frames=moving_frames(1))
    write_video(videos / "c" / "blind.mp4", sound=voice(1))
    write_wav(videos / "c" / "faceless.wav", voice(1))
    (videos / "people.csv").write_text("speaker_id,split\na,train\nb,train\nc,train\n")
    extract("--videos", videos, "--out", out)
    with (out / "failures.csv").open() as file:
        failures = {row["clip"]: row["reason"] for row in csv.DictReader(file)}
    assert failures.keys() == expected.keys()
    assert all(failures[clip].startswith(reason) for clip, reason in expected.items())
    train = Clips(out)
    assert [train[i]["clip_id"] for i in range(len(train))] == sorted(
        str(path.relative_to(videos).with_suffix("")) for path in good
    )
    printed = capsys.readouterr().out
    assert "4 train" in printed and "6 clips failed" in printed and "2 damaged, or not a media file" in printed


def test_a_dry_run_describes_the_dataset_and_writes_nothing(people_folder, tmp_path, extract, capsys):
    extract("--videos", people_folder, "--out", tmp_path / "data", "--dry-run")
    printed = capsys.readouterr().out
    assert "train: 6 clips of 3 speakers in 3 shards" in printed and "mel: 111 rows of 768" in printed
    assert not (tmp_path / "data").exists()


def test_a_different_plan_for_the_same_folder_is_rejected(people_folder, complete, tmp_path, extract):
    before = contents(complete)
    other = tmp_path / "videos"
    write_clip(other / "id0" / "1.mp4")
    (other / "people.csv").write_text("speaker_id,split\nid0,train\n")
    changed = tmp_path / "people.csv"
    changed.write_text((people_folder / "people.csv").read_text().replace("20", "30"))
    for arguments, what in [
        (("--videos", other), "videos"),
        (("--videos", people_folder, "--config.extract.extractors=mel"), "extractors"),
        (("--videos", people_folder, "--config.extract.clips_per_shard=3"), "clips_per_shard"),
        (("--videos", people_folder, f"--config.extract.attributes={changed}"), "attributes"),
    ]:
        with pytest.raises(UserError, match=f"made with different {what};"):
            extract(*arguments, "--out", complete)
    assert contents(complete) == before


def test_an_error_ends_the_run_and_finished_shards_are_kept(people_folder, tmp_path, extract, monkeypatch):
    real, calls = chunk.write_shard, []

    def full_disk(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(chunk, "write_shard", full_disk)
    out = tmp_path / "data"
    with pytest.raises(OSError, match="No space left"):
        extract("--videos", people_folder, "--out", out)
    assert len(shards(out)) == 2 and not (out / "metadata.json").exists()


def test_a_user_error_in_a_worker_is_raised_in_the_caller():
    settings = base.get_config().extract.to_dict() | {"extractors": ("ecapa",), "detector": "skip", "workers": 2}
    settings |= {"device": "cpu", "embedder": "", "deepface": {"estimate": ()}, "ecapa": {"windows": ((25, 1),)}}
    with pytest.raises(UserError, match="25 s every 1 s does not fit"):
        with runners._process_pool(json.dumps(settings), 2, []) as runner:
            runner.describe()


def start_and_kill(command: list[str], out: Path, files: int) -> None:
    """Kills a run once this number of further shards and their summaries, also unfinished ones, has appeared."""
    files += len(list(out.rglob("*slf-*")))
    run = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for(lambda: run.poll() is not None or len(list(out.rglob("*slf-*"))) >= files)
    run.kill()
    assert run.wait() == -signal.SIGKILL


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.drill)])
def test_kills_at_random_moments_do_not_change_the_dataset(tmp_path, command, extract, kills):
    videos = tmp_path / "videos"
    for i in range(8 * kills):
        write_clip(videos / f"id{i % 10}" / "abc" / f"{i:05d}.mp4", seconds=0.6, pitch=90 + 3 * i)
    (videos / "id3" / "abc" / "broken.mp4").write_text("not a video")
    arguments = ["--videos", str(videos), "--config.extract.clips_per_shard=2"]
    extract(*arguments, "--out", tmp_path / "complete")
    out, rng = tmp_path / "killed", np.random.default_rng(0)
    for _ in range(kills):
        start_and_kill([*command, *arguments, "--out", str(out), "--config.extract.workers=2"], out, rng.integers(1, 4))
    extract(*arguments, "--out", out)
    assert contents(out) == contents(tmp_path / "complete")


def test_shard_ranges_give_the_same_dataset(people_folder, complete, tmp_path, extract, capsys):
    out = tmp_path / "data"
    for part in ("1/3", "0/3"):
        extract("--videos", people_folder, "--out", out, "--shard-range", part)
        assert not (out / "metadata.json").exists()
    assert "shards are left to other jobs" in capsys.readouterr().out
    extract("--videos", people_folder, "--out", out, "--shard-range", "2/3")
    assert contents(out) == contents(complete)


@pytest.mark.parametrize("part", ["3/3", "x/2", "1", "-1/2", "0/0", ""])
def test_an_invalid_shard_range_is_rejected(people_folder, tmp_path, extract, part):
    with pytest.raises(UserError, match="must be I/N with I from 0 to N-1"):
        extract("--videos", people_folder, "--out", tmp_path / "data", f"--shard-range={part}")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--videos", "EMPTY"), "EMPTY: no clips here"),
        (("--videos", "nowhere"), "nowhere: no such folder"),
        ((), "no videos: give a folder of videos, or a CSV"),
        (("--videos", "GOOD", "--config.extract.extractors=mell"), "did you mean 'mel'"),
        (("--videos", "GOOD", "--config.extract.detector=magic"), "no such detector"),
        (("--videos", "GOOD", "--config.extract.worker=1"), "did you mean --config.extract.workers"),
        (("--videos", "GOOD", "--config.extract.workers=-1"), "workers=-1"),
        (
            ("--videos", "GOOD", "--config.extract.clips_per_shard=0"),
            "clips_per_shard=0: must be a whole number of at least 1",
        ),
        (("--videos", "GOOD", "--config.extract.attributes=nowhere.csv"), "nowhere.csv: cannot read"),
        (("--videos", "GOOD", "--out", "GOOD/people.csv"), "people.csv is a file"),
    ],
)
def test_mistakes_are_user_errors_and_write_nothing(people_folder, tmp_path, extract, arguments, message):
    (tmp_path / "EMPTY").mkdir()
    paths = {"EMPTY": str(tmp_path / "EMPTY"), "GOOD": str(people_folder)}
    arguments = [re.sub("EMPTY|GOOD", lambda found: paths[found[0]], argument) for argument in arguments]
    with pytest.raises(UserError, match=message.replace("EMPTY", paths["EMPTY"])):
        extract("--out", tmp_path / "data", *arguments)
    assert not (tmp_path / "data").exists()


def test_a_user_error_is_one_line_and_exit_status_2(people_folder, tmp_path, run_command):
    table = tmp_path / "bad.csv"
    table.write_text("speaker_id,gender\nid0,male\nid1,cat\n")
    done = run_command("--videos", people_folder, "--out", tmp_path / "data", f"--config.extract.attributes={table}")
    assert done.returncode == 2 and not (tmp_path / "data").exists()
    assert done.stderr.startswith(f"error: {table}, line 3: gender 'cat' ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("split, message", [("train", "no clip of the training split"), ("test", "no clip is usable")])
def test_if_all_clips_fail_there_is_no_dataset(tmp_path, extract, split, message):
    (tmp_path / "videos" / "a").mkdir(parents=True)
    (tmp_path / "videos" / "a" / "1.mp4").write_text("not a video")
    (tmp_path / "videos" / "people.csv").write_text(f"speaker_id,split\na,{split}\n")
    with pytest.raises(UserError, match=rf"{message}.*failures\.csv"):
        extract("--videos", tmp_path / "videos", "--out", tmp_path / "data")
    assert not (tmp_path / "data" / "metadata.json").exists()
    assert "damaged" in (tmp_path / "data" / "failures.csv").read_text()


def test_folders_may_have_any_name(people_folder, complete, tmp_path, monkeypatch, extract):
    """(fault 3)"""
    monkeypatch.chdir(tmp_path)
    name = "sweep[width=32]*?{a} 'b' %41 ü::c:d#"
    shutil.copytree(people_folder, f"videos {name}")
    extract("--videos", f"videos {name}", "--out", name)
    assert contents(Path(name)) == contents(complete)
    assert len(Clips(name)) == 6 and len(Clips(Path(name), "test")) == 2


def test_damaged_files_are_reported_and_not_treated_as_missing(people_folder, complete, tmp_path, extract):
    """(fault 7)"""
    out = tmp_path / "data"
    shutil.copytree(complete, out)
    plan, summary = out / "chunks" / "plan.json", next((out / "chunks").glob("slf-*.json"))
    for path, text in ((plan, "[1]"), (plan, "\udcff"), (summary, "{")):
        before = path.read_bytes()
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(UserError, match=f"{path.name}: not valid JSON"):
            extract("--videos", people_folder, "--out", out)
        path.write_bytes(before)
    plan.unlink()
    with pytest.raises(UserError, match="plan.json: missing, but there are shards"):
        extract("--videos", people_folder, "--out", out)
    shutil.copytree(people_folder, tmp_path / "videos")
    (tmp_path / "videos" / "people.csv").unlink()
    (tmp_path / "videos" / "people.csv").symlink_to("nowhere.csv")
    with pytest.raises(UserError, match="people.csv: cannot read the table"):
        extract("--videos", tmp_path / "videos", "--out", tmp_path / "new")
    assert not (tmp_path / "new").exists()
