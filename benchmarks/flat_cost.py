"""Cost per clip, record and face as work grows: `python benchmarks/flat_cost.py --workdir runs/demo`.

Three parts, each of which should take the same time for one item at every size:

- extraction: clips of a few synthetic people, copied to other names, through the log-mel extractor without a detector,
  in one process. 100 and 1,000 clips; `--long` adds 10,000.
- reader: small records (one constituent of 4 values) in shards of 10,000, read at random and in shuffled batches. 10^3
  and 10^5 records; `--long` adds 10^6. Also the seconds to open the dataset, to make its index again without the
  writer's, and to find a clip by id, and the index's bytes in memory per record.
- sweep: 16, 64 and 512 people at two guidance scales in chunks of 16, and PSNR, SSIM and thumbnail error of the faces.

Times are CPU seconds, which other processes on the machine change least; wall seconds are beside them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from slf_common import cli
from tfrecords import writer
from tfrecords.index import index_name
from tfrecords.reader import Clips, batches, stack
from tfrecords.schema import FACE_SIZE, Constituent, Schema

PARTS = ("extraction", "reader", "sweep")
CLIPS, RECORDS, PEOPLE = (100, 1000), (1000, 100_000), (16, 64, 512)
LONG_CLIPS, LONG_RECORDS = 10_000, 1_000_000
SHARD = 10_000  # records
READS = 10_000  # timed reads of records
SCALES = ((0.0, 0.0), (2.0, 2.0))

T = TypeVar("T")


@contextlib.contextmanager
def timed() -> Iterator[list[float]]:
    """Yields a list that holds the CPU seconds of this process and the wall seconds of the block after it."""
    found: list[float] = []
    cpu, wall = time.process_time(), time.perf_counter()
    yield found
    found += [time.process_time() - cpu, time.perf_counter() - wall]


def in_process(function: Callable[[Path, int], T], folder: Path, count: int) -> T:
    """Calls the function in a process of its own, so that its memory is its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(function, folder, count).result()


def copy_clips(source: Path, folder: Path, count: int) -> None:
    """Copies the videos in `source` to `count` clips of as many speakers."""
    videos = sorted(source.rglob("*.mp4"))
    for i in range(count):
        path = folder / f"p{i:06d}" / "00001" / "00001.mp4"
        path.parent.mkdir(parents=True)
        shutil.copyfile(videos[i % len(videos)], path)


def extract_clips(source: Path, count: int) -> tuple[float, float, float, float]:
    """CPU and wall seconds to extract `count` clips after a warm-up, bytes per record, and peak memory in GB."""
    from configs import base
    from extract import dataset
    from extract.contents import read_contents

    def once(folder: Path, clips: int) -> list[float]:
        copy_clips(source, folder / "videos", clips)
        config = base.get_config().extract
        config.extractors, config.deepface.estimate = ("mel",), ()
        config.update(videos=str(folder / "videos"), out=str(folder / "data"), workers=1, detector="skip")
        with contextlib.redirect_stdout(io.StringIO()), timed() as found:
            dataset.extract(config)
        return found

    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        once(Path(folder) / "warm-up", 16)
        cpu, wall = once(Path(folder) / "timed", count)
        size = sum(path.stat().st_size for path in (Path(folder) / "timed/data").glob("slf-*"))
        contents = read_contents(Path(folder) / "timed/data")
        assert sum(contents.clips.values()) == count
    return cpu, wall, size / count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def time_extraction(sizes: list[int], folder: Path) -> None:
    from extract.talkers.population import generate

    generate(folder / "videos", people=16, workers=2)
    print(f"{'clips':>10}{'CPU ms/clip':>14}{'clips/s':>10}{'kB/record':>12}{'peak GB':>10}")
    for count in sizes:
        cpu, wall, size, peak = in_process(extract_clips, folder / "videos", count)
        print(
            f"{count:>10,}{1e3 * cpu / count:>14.1f}{count / wall:>10.1f}{size / 1e3:>12.1f}{peak:>10.2f}", flush=True
        )


def write_records(folder: Path, count: int) -> float:
    """Writes a split of `count` small records, ten for each speaker; returns CPU microseconds per record."""
    import tensorflow_datasets as tfds

    tfds.features.FeaturesDict({"id": tfds.features.Text()})  # imports what the writer uses
    start = time.process_time()
    schema, face = Schema((Constituent("small", 1, 4, "continuous"),)), np.full((FACE_SIZE, FACE_SIZE, 3), 90, np.uint8)
    shards = -(-count // SHARD)
    for shard in range(shards):
        numbers = range(shard * SHARD, min(count, (shard + 1) * SHARD))
        clips = (
            {"clip_id": f"id{i // 10:06d}/{i:011d}/00001", "speaker_id": f"id{i // 10:06d}", "face": face,
             "age": 30.0, "small": np.ones((1, 4))}
            for i in numbers
        )  # fmt: skip
        writer.write_shard(folder / writer.shard_name("train", shard, shards), schema, clips)
    writer.finalise(folder, schema, {"train": shards})
    return 1e6 * (time.process_time() - start) / count


def time_reader(sizes: list[int], folder: Path) -> None:
    columns = ("write us", "read us", "batches us", "open s", "index again s", "find ms", "index B", "disk B")
    print(f"{'records':>10}" + "".join(f"{name:>15}" for name in columns))
    for count in sizes:
        with tempfile.TemporaryDirectory(dir=folder) as name:
            # A process writes and another reads, so that the memory of the first does not slow the second.
            writing, reading = (in_process(part, Path(name), count) for part in (write_records, read_records))
            print(f"{count:>10,}{writing:>15.3f}" + "".join(f"{value:>15.3f}" for value in reading), flush=True)


def read_records(folder: Path, count: int) -> list[float]:
    """Times reading `count` records; values of the columns of `time_reader` after the first, in CPU seconds."""
    chosen = np.random.default_rng(0).integers(0, count, READS).tolist()
    Clips(folder)[0]  # imports packages
    with timed() as opening:
        clips = Clips(folder)
    with timed() as reading:
        for i in chosen:
            clips[i]
    stream = batches(clips, 100, seed=0, threads=1)
    next(stream)
    with timed() as batching:
        for _ in range(READS // 100):
            next(stream)
    last = list(clips.names())[-1][0]
    with timed() as finding:
        for _ in range(10):
            clips.find(last)
    index = clips._index
    assert index.ids is not None
    memory, disk = (
        index.spans.nbytes + index.ids.nbytes,
        sum(path.stat().st_size for path in folder.rglob("*.tfrecord*")),
    )
    (folder / index_name(writer.NAME, "train")).unlink()
    with timed() as indexing:
        Clips(folder)
    return [
        1e6 * reading[0] / READS, 1e6 * batching[0] / READS, opening[0], indexing[0], 100 * finding[0],
        memory / count, disk / count,
    ]  # fmt: skip


def time_sweep(sizes: list[int], workdir: Path, data: str, split: str) -> None:
    import jax

    from slf_jax.evaluation import metrics
    from slf_jax.inference.people import choose_people, person_number
    from slf_jax.inference.sampler import Sampler
    from slf_jax.inference.trained import load

    trained = load(str(workdir))
    clips, sampler = Clips(data or trained.meta.config.data.dir, split), Sampler(trained)
    print(f"{len(SCALES)} scales, {jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}")
    columns = ("read ms/person", "sample ms/face", "wall ms/face", "measure ms/face")
    print(f"{'people':>10}" + "".join(f"{name:>17}" for name in columns))
    for i, people in enumerate([sizes[0], *sizes]):
        with timed() as reading:
            chosen = choose_people(clips, people)
        batch, numbers = stack(chosen), np.array([person_number(clip["clip_id"]) for clip in chosen])
        with timed() as sampling:
            images = sampler(batch, numbers, SCALES, 0)
        with timed() as measuring:
            for each in images:
                metrics.fidelity(each, batch["face"])
        faces = len(chosen) * len(SCALES)
        values = (reading[0] / len(chosen), sampling[0] / faces, sampling[1] / faces, measuring[0] / faces)
        if i:  # the first round compiles
            print(f"{len(chosen):>10,}" + "".join(f"{1e3 * value:>17.2f}" for value in values), flush=True)


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    arguments.add_argument("--workdir", type=Path, default=Path("runs/demo"), help="run to sample (default: runs/demo)")
    arguments.add_argument("--data", default="", help="its dataset (default: the run's own)")
    arguments.add_argument("--split", default="train", help="split of the sampled people (default: train)")
    arguments.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    arguments.add_argument("--long", action="store_true", help="also 10,000 clips and a million records")
    arguments.add_argument("--temporary", type=Path, help="folder for temporary files, 4 GB with --long")
    args = arguments.parse_args()
    with tempfile.TemporaryDirectory(dir=args.temporary) as folder:
        if "extraction" in args.parts:
            time_extraction([*CLIPS, *[LONG_CLIPS] * args.long], Path(folder))
        if "reader" in args.parts:
            time_reader([*RECORDS, *[LONG_RECORDS] * args.long], Path(folder))
    if "sweep" in args.parts:
        time_sweep(list(PEOPLE), args.workdir, args.data, args.split)


if __name__ == "__main__":
    cli.run(main)
