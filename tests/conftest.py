"""Fixtures: folders that are made once for all test workers, a small dataset, and one with a test split only."""

from __future__ import annotations

import os
import shutil

import pytest
from filelock import FileLock
from records import make_clip

from tfrecords import writer
from tfrecords.schema import AUDIO_CONSTITUENTS, Schema

# DeepFace has one engine per process, and the small networks that tests write are ONNX files.
os.environ.setdefault("DEEPFACE_BACKEND_ENGINE", "onnx")
SPLITS = {"train": (2, 12), "validation": (1, 6), "test": (1, 6)}  # shards, clips per shard


@pytest.fixture(scope="session")
def once(tmp_path_factory, worker_id):
    """Makes folders that all test workers share: `once(name, make)` calls `make(folder)` in the first worker that asks.

    The others wait and get the same folder; tests must not change it.
    """
    root = tmp_path_factory.getbasetemp()
    shared = root if worker_id == "master" else root.parent

    def folder(name, make):
        path, made = shared / name, shared / f"{name}.made"
        with FileLock(shared / f"{name}.lock"):
            if not made.exists():
                shutil.rmtree(path, ignore_errors=True)
                path.mkdir()
                make(path)
                made.touch()
        return path

    return folder


@pytest.fixture(scope="session")
def schema() -> Schema:
    return Schema(tuple(part for part in AUDIO_CONSTITUENTS if part.name in ("pyaudioanalysis", "mel")))


@pytest.fixture(scope="session")
def dataset(once, schema):
    """A dataset folder with 24 training, 6 validation and 6 test clips."""

    def make(directory):
        for split, (shards, clips) in SPLITS.items():
            for i in range(shards):
                path = directory / writer.shard_name(split, i, shards)
                writer.write_shard(path, schema, (make_clip(i * clips + k, split) for k in range(clips)))
        writer.finalise(directory, schema, {split: shards for split, (shards, _) in SPLITS.items()})

    return once("records", make)


# The longest files, most of which start processes. They come first, so that no worker ends with one of them alone.
# Those that need the fixture `run` alternate with others, which run while it is made.
LONG = (
    "test_processes.py", "test_ablate.py", "test_train.py", "test_crash_recovery.py", "test_cascade.py",
    "test_evaluate.py", "test_distributed.py", "test_distill.py", "test_system.py", "test_sampler.py", "test_draw.py",
    "test_end_to_end.py", "test_weak.py", "test_test_people.py", "test_page.py", "test_run.py", "test_streams.py",
    "test_sweep.py", "test_export.py", "test_flow_stage.py", "test_distillation.py", "test_identity_head.py",
    "test_precision.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """Ends the run when a worker dies, once the others finish their file; xdist alone would wait forever."""
    if error:
        node.config.pluginmanager.get_plugin("dsession").shouldstop = f"test worker {node.gateway.id} died"


@pytest.fixture(scope="session")
def eval_only_dataset(tmp_path_factory, schema):
    """A dataset folder with 6 test clips only, and therefore without statistics."""
    directory = tmp_path_factory.mktemp("eval_only")
    path = directory / writer.shard_name("test", 0, 1)
    writer.write_shard(path, schema, (make_clip(k, "test") for k in range(6)))
    writer.finalise(directory, schema, {"test": 1})
    return directory
