"""Lays out the public clips that docs/people.md measures on: a folder for each video, a sound beside its face.

    git clone https://github.com/speech2face/speech2face.github.io
    python benchmarks/people_clips.py --page speech2face.github.io --out data/people/clips

The page of Speech2Face (Oh et al. 2019) shows 968 clips of 931 videos of AVSpeech. A video is taken for a speaker, and
videos are divided into train, validation and test by a hash of their ids. The people are real and the page names no
licence: keep the clips, and all that is made from them, to yourself.
"""

from __future__ import annotations

import csv
import hashlib
import re
import shutil
from pathlib import Path

from slf_common import cli
from slf_common.errors import UserError
from slf_common.files import local_path

NAME = re.compile(r"(.{11})_(\d+\.\d+-\d+\.\d+)")  # YouTube's id of the video, and the seconds that the clip spans


def split_of(video: str) -> str:
    """A tenth of the videos are for testing, a fifteenth of the others for validation."""
    number = int(hashlib.sha256(video.encode()).hexdigest(), 16)
    return "test" if number % 10 == 0 else "validation" if number // 10 % 15 == 0 else "train"


def lay_out(page: Path, out: Path) -> str:
    """Copies the pairs to `out`/VIDEO/SECONDS/ and writes people.csv; returns a summary. Raises `UserError`."""
    results, videos, clips = page / "figures" / "avspeech_res", set(), 0
    for sound in sorted((results / "Wav").glob("*.wav")):
        named, face = NAME.fullmatch(sound.stem), results / "Face_ori" / f"{sound.stem}.jpg"
        if named and face.exists():
            folder = out / named[1] / named[2]
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(sound, folder / "clip.wav")
            shutil.copyfile(face, folder / "clip.jpg")
            videos.add(named[1])
            clips += 1
    if not clips:
        raise UserError(f"{results}: no pairs of Wav/*.wav and Face_ori/*.jpg; give --page the clone of the page")
    with (out / "people.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["speaker_id", "split"])
        writer.writerows([video, split_of(video)] for video in sorted(videos))
    return f"{out}: {clips} clips of {len(videos)} videos"


def main() -> None:
    parser = cli.parser(
        "benchmarks.people_clips",
        __doc__,
        ["python benchmarks/people_clips.py --page speech2face.github.io --out data/people/clips"],
    )
    parser.add_argument("--page", required=True, type=local_path, help="clone of speech2face/speech2face.github.io")
    parser.add_argument("--out", required=True, type=local_path, help="folder to write")
    args = parser.parse_args()
    print(lay_out(args.page, args.out))


if __name__ == "__main__":
    cli.run(main)
