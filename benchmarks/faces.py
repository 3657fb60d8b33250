"""Counts the faces that each detector finds in a folder of pictures, and times detection, attributes and embedding.

    python benchmarks/faces.py --pictures data/faces

Prints, for each detector and for the chain of all of them, the pictures with a face and the seconds per picture; then
the seconds per face of the networks that need no download. Loading is not included.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from extract import deepface, faces
from extract.age_gender import AgeGenderEstimator
from extract.faces import FaceCrop
from extract.media import MediaError, read_image

DETECTORS = "dlib,centerface,opencv"  # need no download
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

T = TypeVar("T")


def find_all(pictures: Sequence[np.ndarray], detectors: Mapping[str, faces.Detector]) -> list[FaceCrop]:
    """Prints how many pictures, uint8 RGB [H, W, 3], have a face for a chain of detectors; returns the faces."""
    found = []
    start = time.perf_counter()
    for picture in tqdm(pictures, desc=",".join(detectors), leave=False, disable=None):
        try:
            found.append(faces.find_face([picture], detectors))
        except MediaError:
            continue
    seconds = (time.perf_counter() - start) / len(pictures)
    share = len(found) / len(pictures)
    by = ", ".join(f"{name} {count}" for name, count in Counter(face.detector for face in found).items())
    print(f"{','.join(detectors):<24}{len(found):>6} of {len(pictures)} = {share:.1%}, {seconds:.3f} s each ({by})")
    return found


def time_each(name: str, call: Callable[[Sequence[FaceCrop]], T], found: Sequence[FaceCrop]) -> T:
    """Prints the seconds per face of one model."""
    call(found[:1])
    start = time.perf_counter()
    result = call(found)
    print(f"{name:<24}{(time.perf_counter() - start) / len(found):.4f} s per face")
    return result


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--pictures", type=Path, required=True, help="folder that is searched for pictures")
    arguments.add_argument("--detectors", default=DETECTORS, help=f"separated by commas (default: {DETECTORS})")
    arguments.add_argument("--count", type=int, default=0, help="use the first pictures only (default: all)")
    args = arguments.parse_args()
    paths = sorted(path for path in args.pictures.rglob("*") if path.suffix.lower() in SUFFIXES)
    pictures = [read_image(path) for path in paths[: args.count or None]]
    if not pictures:
        raise SystemExit(f"error: {args.pictures}: no pictures here")
    deepface.start({"home": "", "engine": "onnx"})
    detectors = faces.load_detectors(args.detectors)
    for name, detector in detectors.items():
        find_all(pictures, {name: detector})
    found = find_all(pictures, detectors)
    time_each("age and gender", AgeGenderEstimator(("age", "gender")), found)
    time_each("face embedding (dlib)", deepface.FaceEmbedder("dlib"), found)


if __name__ == "__main__":
    main()
