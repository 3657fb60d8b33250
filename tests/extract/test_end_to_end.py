"""The whole extraction with every framework, from videos, sounds and damaged files to all 223 rows of the matrix."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from recordings import contents, moving_frames, voice, write_clip, write_video, write_wav

pytest.importorskip("nemo", reason="needs the extra `extract`")

from PIL import Image

from extract import random_weights
from extract.extractors.registry import load
from extract.media import decode_audio, fit_audio
from extract.run import main
from slf_jax.features import assemble, make_layout
from tfrecords.reader import Clips, stack

pytestmark = pytest.mark.frameworks
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """Twelve clips of five people, two of them unusable: videos, and sounds next to a photograph."""
    root = tmp_path_factory.mktemp("tree")
    astronaut = pytest.importorskip("skimage.data").astronaut()
    lines = ["speaker_id,age,split"]
    for i in range(5):
        photograph = np.roll(astronaut, 20 * i, axis=0)[:300]
        for clip in range(2):
            stem = root / f"id{i}" / "abc" / f"{clip}"
            if clip:
                write_wav(stem.with_suffix(".wav"), voice(1 + i, pitch=90 + 30 * i))
                Image.fromarray(photograph).save(stem.with_suffix(".png"))
            else:
                write_video(stem.with_suffix(".mp4"), voice(1 + i, pitch=95 + 30 * i), np.stack([photograph] * 4))
        lines.append(f"id{i},{'' if i else 33},{('train', 'train', 'train', 'validation', 'test')[i]}")
    write_video(root / "id0" / "abc" / "faceless.mp4", voice(1), moving_frames(1))
    (root / "id0" / "abc" / "torn.mp4").write_bytes(write_clip(root.parent / "x.mp4").read_bytes()[:2000])
    (root / "people.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def flags(tree, tmp_path_factory) -> list[str]:
    weights = random_weights.write_all(tmp_path_factory.mktemp("weights") / "small", small=True)
    ours = ["--config", str(ROOT / "configs" / "base.py"), "--videos", str(tree), "--config.extract.detector=opencv"]
    return [*ours, *weights, "--config.extract.clips_per_shard=2", "--config.extract.workers=2"]


def run(flags: list[str], out: Path, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "extract.run", *flags, "--out", str(out)],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def dataset(flags, tmp_path_factory) -> Path:
    """The dataset, extracted by a command with two workers."""
    out = tmp_path_factory.mktemp("end_to_end") / "data"
    done = run(flags, out, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    printed, errors = done.communicate(timeout=600)
    assert done.returncode == 0, errors
    assert "6 train, 2 validation, 2 test clips" in printed and "pyannote" in printed
    return out


def test_every_row_of_the_matrix_is_filled(dataset):
    clips = Clips(dataset)
    layout = make_layout(clips.schema)
    matrix, mask = assemble(stack([clips[i] for i in range(len(clips))]), layout, clips.statistics)
    assert mask.shape == (6, 256) and (np.asarray(mask).sum(1) == 223).all() and not mask[:, 223:].any()
    assert np.isfinite(matrix).all() and np.asarray(matrix)[:, :223].any(-1).all()


def test_the_records_have_language_attributes_and_provenance(dataset):
    clips = Clips(dataset)
    for i in range(len(clips)):
        clip = clips[i]
        assert clip["language"] == clip["language_logprobs"].argmax()
        assert 0 <= clip["gender"] < 2 and 0 <= clip["ethnicity"] < 6
        assert clip["age"] == 33 if clip["speaker_id"] == "id0" else 0 < clip["age"] <= 100  # given in the table
        assert clip["face"].std() > 20
    digests = {part.name: part.weights for part in clips.schema.constituents}
    assert {name for name, digest in digests.items() if not digest} == {"mel", "pyaudioanalysis"}
    metadata = (dataset / "metadata.json").read_text()
    assert '"opencv": "DeepFace' in metadata and "estimator" in metadata


def test_failures_are_listed_with_reasons(dataset):
    assert (dataset / "failures.csv").read_text().splitlines() == [
        "clip,reason",
        'id0/abc/faceless,"no face in 5 frames; if the images are face crops already, add skip, '
        'as in --config.extract.detector=opencv,skip"',
        'id0/abc/torn,"damaged, or not a media file (Invalid data found when processing input)"',
    ]


def test_a_record_is_below_350_kilobytes(dataset):
    sizes = [path.stat().st_size for path in dataset.glob("slf-*")]
    assert sum(sizes) / 10 < 350_000


def test_tfds_opens_it(dataset):
    pytest.importorskip("tensorflow", reason="TFDS decodes records with TensorFlow: pip install tensorflow-cpu")
    import tensorflow_datasets as tfds

    read = list(tfds.builder_from_directory(dataset).as_dataset("train").as_numpy_iterator())
    ours = Clips(dataset)
    assert len(read) == len(ours) == 6
    for theirs, mine in zip(sorted(read, key=lambda c: c["clip_id"]), [ours[i] for i in range(6)], strict=True):
        assert theirs["clip_id"].decode() == mine["clip_id"] and theirs["language"] == mine["language"]
        for part in ours.schema.constituents:
            np.testing.assert_array_equal(theirs[part.name], mine[part.name])


def test_ray_gives_the_same_dataset_although_a_worker_is_killed(flags, tmp_path):
    pytest.importorskip("ray", reason="needs the extra `ray`")
    import torch

    # With one speaker embedder: each process needs half a minute to import all frameworks.
    flags = [*flags, "--config.extract.extractors=ecapa,mel"]
    out, expected = tmp_path / "data", tmp_path / "expected"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in Ray's workers; on some processors, sums of several threads are rounded differently
    try:
        main([*flags, "--config.extract.workers=1", "--out", str(expected)])
    finally:
        torch.set_num_threads(threads)
    session = run(
        [*flags, "--runner", "ray"], out, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        deadline, busy = time.monotonic() + 600, []
        while not busy:
            assert session.poll() is None and time.monotonic() < deadline, session.communicate()
            time.sleep(0.05)
            busy = [pid for pid in process_tree(session.pid) if b"ray::_work" in command_line(pid)]
        os.kill(busy[0], signal.SIGKILL)
        _, errors = session.communicate(timeout=600)
    finally:
        session.kill()
    assert session.returncode == 0, errors
    assert contents(out) == contents(expected)


def process_tree(root: int) -> list[int]:
    """Returns the ids of a process and all its descendants."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rsplit(")", 1)[1].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found = [root]
    for parent in found:
        found += [pid for pid, its_parent in parents.items() if its_parent == parent]
    return found


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def test_different_weights_for_the_same_folder_are_rejected(dataset, flags, tmp_path):
    import torch

    random_weights.write_ecapa(tmp_path / "ecapa", small=True)
    state = torch.load(tmp_path / "ecapa" / "embedding_model.ckpt", weights_only=True)
    next(iter(state.values())).view(-1)[0] += 1
    torch.save(state, tmp_path / "ecapa" / "embedding_model.ckpt")
    out = shutil.copytree(dataset, tmp_path / "data")
    next(out.glob("slf-train*")).unlink()
    other = [*flags, f"--config.extract.ecapa.weights={tmp_path / 'ecapa'}"]
    refused = run(other, out, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    _, errors = refused.communicate(timeout=600)
    assert refused.returncode == 2
    problem = "holds a dataset made with different constituents (ecapa)"
    assert errors == f"error: {out} {problem}; give another --out, or remove that folder\n"


def test_a_finished_dataset_is_reported_without_loading_models(dataset, flags, tmp_path, capsys):
    out = shutil.copytree(dataset, tmp_path / "data")
    missing = [flag.replace("/small", "/missing") for flag in flags]
    main([*missing, "--out", str(out), "--config.extract.device=cpu"])
    assert "6 train" in capsys.readouterr().out and contents(out) == contents(dataset)


def test_the_stored_constituents_match_the_clips_sound(dataset, tree):
    (mel,) = load({"extractors": ("mel",)})
    clips = Clips(dataset)
    for i in range(len(clips)):
        path = next(p for p in tree.glob(clips[i]["clip_id"] + ".*") if p.suffix in (".wav", ".mp4"))
        wave = fit_audio(decode_audio(path))
        np.testing.assert_array_equal(clips[i]["mel"], mel(wave[None])[0].astype(np.float16))
