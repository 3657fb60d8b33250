"""A folder of videos of synthetic people, and the command that extracts it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from recordings import write_clip

from extract.run import main

ROOT = Path(__file__).parents[2]

CONFIG = """
from configs import base

def get_config():
    config = base.get_config()
    config.extract.update(
        videos="", out="", extractors=("pyaudioanalysis", "mel"), detector="skip", clips_per_shard=2, workers=1
    )
    config.extract.deepface.estimate = ()
    return config
"""


@pytest.fixture(scope="session")
def people_folder(tmp_path_factory) -> Path:
    """Five speakers with two clips each in VoxCeleb2's layout, and a people.csv; tests must not change it."""
    root = tmp_path_factory.mktemp("videos")
    lines = ["speaker_id,age,Gender,ethnicity,language,split"]
    for i, split in enumerate(("train", "train", "train", "validation", "test")):
        for clip in range(2):
            write_clip(root / f"id{i}" / "abc" / f"0000{clip}.mp4", pitch=90 + 30 * i + 7 * clip)
        gender, ethnicity = ("FEMALE", "Latino Hispanic") if i % 2 else ("male", "")
        lines.append(f"id{i},{20 + i},{gender},{ethnicity},ENGLISH,{split}")
    (root / "people.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="session")
def config_file(tmp_path_factory) -> Path:
    """A config with models that need no weights."""
    path = tmp_path_factory.mktemp("config") / "small.py"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="session")
def command(config_file):
    """The command line of `extract.run` with that config, as a list for `subprocess`."""
    return [sys.executable, "-m", "extract.run", "--config", str(config_file)]


@pytest.fixture(scope="session")
def run_command(command):
    """Runs `extract.run` with further arguments in a separate process."""

    def run(*arguments: str | Path) -> subprocess.CompletedProcess:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [*command, *map(str, arguments)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400
        )

    return run


@pytest.fixture(scope="session")
def extract(config_file):
    """Runs the command in this process."""

    def run(*arguments: str | Path) -> None:
        main(["--config", str(config_file), *map(str, arguments)])

    return run
