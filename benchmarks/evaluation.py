"""Times the evaluation per 1,000 faces: embedding, gallery, search, PSNR and SSIM.

python benchmarks/evaluation.py --data data/demo/records
python benchmarks/evaluation.py --data data/demo/records --embedder vgg-face --detector skip --faces 50
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from slf_common import cli
from slf_jax.evaluation import metrics
from slf_jax.evaluation.embedders import EMBEDDERS, make_embedder
from slf_jax.evaluation.gallery import Gallery
from tfrecords.reader import Clips


def timed(name: str, count: int, call: Callable[[], object]) -> object:
    start = time.perf_counter()
    result = call()
    print(f"{name:32} {1000 * (time.perf_counter() - start) / count:8.2f} s per 1,000 faces", flush=True)
    return result


def main() -> None:
    arguments = cli.parser(
        "benchmarks.evaluation", __doc__, ["python benchmarks/evaluation.py --data data/demo/records"]
    )
    arguments.add_argument("--data", required=True, help="dataset folder")
    arguments.add_argument("--embedder", default="eigenfaces", choices=list(EMBEDDERS), help="default: eigenfaces")
    arguments.add_argument("--detector", default="", help="face detector (default: the embedder's)")
    arguments.add_argument("--faces", type=int, default=1000, help="number of faces (default: 1000)")
    args = arguments.parse_args()
    train, count = Clips(args.data, "train"), args.faces
    embedder = timed(
        "fitting or loading the embedder", count, lambda: make_embedder(args.embedder, "", args.detector, train)
    )
    images = np.stack([train[i % len(train)]["face"] for i in range(count)])
    found = timed("embedding and attributes", count, lambda: embedder(images))
    with tempfile.TemporaryDirectory() as folder:
        gallery = Gallery(Path(folder), embedder.metric)
        speakers = [str(i) for i in range(count)]
        timed("building the gallery", count, lambda: gallery.build("bench", {}, speakers, found.vectors))
        timed("search for the 100 nearest", count, lambda: gallery.search(found.vectors, 100))
    other = np.roll(images, 1, 0)
    timed("PSNR", count, lambda: metrics.psnr(images, other))
    timed("SSIM", count, lambda: metrics.ssim(images, other))


if __name__ == "__main__":
    cli.run(main)
