"""Writes a whole population as mp4 files: splits, the attributes CSV, and one task for each clip."""

from __future__ import annotations

import csv
import io
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

from extract.frameworks import keep_memory
from extract.talkers import face, video
from extract.talkers.identity import Identity, draw_identity
from extract.talkers.scene import draw_scene
from slf_common import cli
from slf_common.errors import UserError
from slf_common.files import write_atomically

FPS = 4
SECONDS = (3.0, 12.0)  # duration of a clip; short ones are more common
_MOUTHS = 6  # different openings of the mouth in a clip, each drawn once
_SHARES = {"validation": 1 / 16, "test": 1 / 8}  # of the people; the rest train
CLIPS = {"train": 1, "validation": 2, "test": 2}  # per person


@dataclass(frozen=True)
class ClipTask:
    """One clip to write, fully determined by the three numbers."""

    seed: int
    index: int
    clip: int
    path: Path


def make_clip(identity: Identity, clip: int) -> tuple[np.ndarray, np.ndarray]:
    """Makes one clip: frames uint8 [T, 160, 160, 3] at 4 fps, audio float32 [4000 T] at 16 kHz."""
    from extract.talkers import voice  # here: only the workers need scipy.signal, whose import takes 2 s

    rng = np.random.default_rng([identity.seed, identity.index, clip])
    low, high = SECONDS
    count = round((low + (high - low) * rng.beta(1.0, 1.6)) * FPS)
    audio = voice.synthesize(identity, count / FPS, rng)
    scene = draw_scene(rng)
    steps = np.round(voice.loudness(audio, count) * (_MOUTHS - 1)).astype(int)
    drawn, of_frame = np.unique(steps, return_inverse=True)
    return face.render(identity, scene, (drawn / (_MOUTHS - 1)).tolist())[of_frame], audio


def splits(people: int) -> list[str]:
    """Returns the split of every person by index; each split has at least one person. Raises `ValueError` below 3."""
    held_out = {name: max(1, round(people * share)) for name, share in _SHARES.items()}
    train = people - sum(held_out.values())
    if train < 1:
        raise ValueError(f"{people} people are too few for three splits; at least 3 are needed")
    return ["train"] * train + [name for name, count in held_out.items() for _ in range(count)]


def generate(out: Path, people: int = 1024, seed: int = 0, workers: int = 1) -> int:
    """Writes the population to `out` and returns the number of clips written in this run.

    Raises `UserError` if `out` already holds a different population.
    """
    out = Path(out)
    split_of = splits(people)
    _write_table(out / "people.csv", _table(seed, split_of))
    tasks = [
        ClipTask(seed, index, clip, out / f"p{index:05d}" / f"{clip:05d}" / "00001.mp4")
        for index, split in enumerate(split_of)
        for clip in range(1, CLIPS[split] + 1)
    ]
    tasks = [task for task in tasks if not task.path.exists()]
    progress = tqdm(total=len(tasks), desc="talkers", unit="clip", disable=not tasks)
    with progress:
        if workers == 1:
            for task in tasks:
                _write_clip(task)
                progress.update()
        else:
            pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=keep_memory)
            try:
                with cli.block_sigint_in_children():
                    written = pool.map(_write_clip, tasks, chunksize=4)
                for _ in written:
                    progress.update()
            finally:
                # Immediately: after an error or an interrupt no worker should finish the rest.
                pool.shutdown(wait=False, cancel_futures=True)
                for child in active_children():
                    child.terminate()
    return len(tasks)


def _write_clip(task: ClipTask) -> None:
    from extract.talkers import voice

    frames, audio = make_clip(draw_identity(task.seed, task.index), task.clip)
    video.write_mp4(task.path, frames, FPS, audio, voice.RATE)


def _table(seed: int, split_of: list[str]) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["speaker_id", "age", "gender", "ethnicity", "split"])
    for index, split in enumerate(split_of):
        person = draw_identity(seed, index)
        rows.writerow([person.speaker_id, person.age, person.gender, person.ethnicity, split])
    return text.getvalue()


def _write_table(path: Path, text: str) -> None:
    """Writes people.csv, unless it already exists with the same content."""
    if not path.exists():
        write_atomically(path, text.encode())
    elif path.read_text() != text:
        raise UserError(
            f"{path} describes another population (different --people or --seed); give another --out, or remove that "
            "folder"
        )
