"""Turns a folder of videos into a dataset. Run again after an interruption, it goes on where it was."""

from __future__ import annotations

import csv
import io
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import ml_collections

from extract.attributes import People, read_people
from extract.extractors import load
from extract.faces import find_detector
from extract.media import VIDEO, find_clips
from extract.pipeline import Chunk, Job, claim, count_shards, is_done, make_chunks, read_summary
from extract.runners import run_chunks
from tfrecords import cli
from tfrecords.cli import UserError
from tfrecords.schema import Schema
from tfrecords.writer import SPLITS, finalise, write_atomically

PEOPLE = "people.csv"
FAILURES = "failures.csv"


def extract(settings: ml_collections.ConfigDict, *, dry_run: bool = False) -> None:
    """Extracts the dataset that `config.extract` describes, or only says what that would be.

    Writes shards, then the metadata and `failures.csv`, to `settings.out`. Raises `UserError` for settings that
    make no dataset, and where no clip of the training split could be used; there is no metadata then.
    """
    _check(settings)
    names = tuple(settings.extractors)
    schema = Schema(tuple(part.constituent for part in load(names)))
    job = Job(Path(settings.out), schema, names, settings.detector)
    chunks = _plan(settings)
    if not dry_run:
        claim(job, chunks, settings.clips_per_shard)
    print(_describe(chunks, job), flush=True)
    if dry_run:
        return
    run_chunks(chunks, job, settings.workers)
    print(_finish(chunks, job))


def _check(settings: ml_collections.ConfigDict) -> None:
    if not settings.videos:
        raise UserError("no videos: give their folder with --videos DIR")
    if not settings.out:
        raise UserError("nowhere to write: give the dataset's folder with --out DIR")
    if Path(settings.out).exists() and not Path(settings.out).is_dir():
        raise UserError(f"--out {settings.out}: a file of this name is in the way of the folder")
    if settings.clips_per_shard < 1:
        raise UserError(f"config.extract.clips_per_shard={settings.clips_per_shard}: a shard holds at least 1 clip")
    if settings.workers < 0:
        raise UserError(f"config.extract.workers={settings.workers}: give 0 (one for each core) or more")
    find_detector(settings.detector)


def _plan(settings: ml_collections.ConfigDict) -> list[Chunk]:
    clips = find_clips(settings.videos)
    if not clips:
        kinds = ", ".join(suffix[1:] for suffix in VIDEO)
        raise UserError(f"{settings.videos}: no clips here or below: videos ({kinds}), or sound beside images")
    table = Path(settings.attributes or Path(settings.videos) / PEOPLE)
    people = read_people(table) if settings.attributes or table.exists() else People()
    chunks = make_chunks(clips, people, settings.clips_per_shard)
    identified = [clip for chunk in chunks for clip in chunk.clips]
    if (people.by_speaker or people.by_clip) and not people.know_any(identified):
        raise UserError(
            f"{table}: none of its rows is of a speaker in {settings.videos}; the first is {clips[0].speaker_id!r}"
        )
    if not count_shards(chunks)["train"]:
        raise UserError(
            f"{settings.videos}: the training split is empty; a column `split` in {PEOPLE} says who is in it"
        )
    return chunks


def _describe(chunks: Sequence[Chunk], job: Job) -> str:
    lines = [f"{job.out}: {len(chunks)} shards, {sum(is_done(job, chunk) for chunk in chunks)} of them done"]
    for split, shards in count_shards(chunks).items():
        clips = [clip for chunk in chunks if chunk.split == split for clip in chunk.clips]
        speakers = len({clip.speaker_id for clip in clips})
        lines.append(f"  {split}: {len(clips)} clips of {speakers} speakers in {shards} shards")
    for part in job.schema.constituents:
        lines.append(f"  {part.name}: {part.rows} rows of {part.width} ({part.extractor}; {part.windows})")
    return "\n".join(lines)


def _finish(chunks: Sequence[Chunk], job: Job) -> str:
    """Writes metadata and failures of the finished shards; returns the summary."""
    written = dict.fromkeys(SPLITS, 0)
    failures: list[dict] = []
    for chunk in chunks:
        summary = read_summary(job, chunk)
        written[chunk.split] += len(summary["clips"])
        failures += summary["failures"]
    write_atomically(job.out / FAILURES, _table(failures))
    if not written["train"]:
        raise UserError(f"no clip of the training split could be used; {job.out / FAILURES} says why")
    _tidy(job.out)
    finalise(job.out, job.schema, count_shards(chunks))
    return _summarise(job.out, written, failures)


def _table(failures: Sequence[dict]) -> bytes:
    text = io.StringIO()
    rows = csv.DictWriter(text, ["clip", "reason"], lineterminator="\n")
    rows.writeheader()
    rows.writerows(failures)
    return text.getvalue().encode()


def _tidy(out: Path) -> None:
    """Removes what a killed run left under temporary names."""
    for folder in (out, out / "chunks"):
        for path in folder.glob(".*.tmp-*"):
            path.unlink(missing_ok=True)


def _summarise(out: Path, written: dict[str, int], failures: Sequence[dict]) -> str:
    lines = [f"{out}: " + ", ".join(f"{count} {split}" for split, count in written.items()) + " clips"]
    if failures:
        lines.append(f"{len(failures)} clips failed, see {out / FAILURES}:")
        reasons = Counter(failure["reason"] for failure in failures)
        lines += [f"  {count} {reason}" for reason, count in reasons.most_common()]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """The command: flags, config, `extract`."""
    arguments = cli.parser(
        "extract.run",
        __doc__,
        [
            "python -m extract.run --config configs/demo.py --dry-run",
            "python -m extract.run --config configs/base.py --videos ~/vox2/dev/mp4 --out data/vox2",
            "python -m extract.run --config configs/demo.py --config.extract.workers=1",
        ],
    )
    arguments.add_argument("--videos", metavar="DIR", help="folder of videos, instead of config.extract.videos")
    arguments.add_argument("--out", metavar="DIR", help="the dataset's folder, instead of config.extract.out")
    arguments.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    args, config = cli.parse_with_config(arguments, argv)
    for name in ("videos", "out"):
        if (value := getattr(args, name)) is not None:
            config.extract[name] = value
    try:
        extract(config.extract, dry_run=args.dry_run)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the shards that are finished", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    cli.run(main)
