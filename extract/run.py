"""Turns videos into a dataset. Run again after an interruption, it goes on where it was."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import ml_collections
from tqdm import tqdm

from extract import models, pipeline, runners
from extract.attributes import LANGUAGE, People, read_list, read_people
from extract.clips import NAMED, SOUND, VIDEO, Clip, Found, check_speakers, find_clips, spell
from extract.matching import examples
from extract.pipeline import Chunk, Done, Job
from extract.settings import check_config
from slf_common import cli
from slf_common.errors import UserError
from slf_common.files import check_writable, local_path, write_atomically
from tfrecords.schema import MATRIX_ROWS, Schema, matrix_constituents, spell_rows
from tfrecords.writer import SPLITS, finalise

PEOPLE = "people.csv"
FAILURES = "failures.csv"
LOSSES = "losses.csv"
FACE_BYTES = 30_000  # a 128x128 photograph as PNG, about


def extract(settings: ml_collections.ConfigDict, *, dry_run: bool = False, part: tuple[int, int] = (0, 1)) -> None:
    """Extracts the dataset that `config.extract` describes, or only says what that would be.

    Writes shards and, once all of them exist, the metadata, `failures.csv` and `losses.csv` to `settings.out`.
    `part` (i, n) does every n-th shard from the i-th on. Raises `UserError` for settings that make no dataset, and
    where no clip, or none of a training split, could be used; there is no metadata then.
    """
    _check(settings)
    out = local_path(settings.out)
    if not dry_run:
        check_writable(out, FAILURES, LOSSES, "metadata.json", "dataset_info.json", "features.json", "chunks/")
    clips, people, notes = _read(settings)
    chunks = pipeline.make_chunks(clips, people, settings.clips_per_shard)
    if dry_run:
        schema = models.planned_schema(settings)
        print(_describe(chunks, out, schema, notes), _expect(chunks, schema), sep="\n")
        return
    found = pipeline.read_plan(out)
    outline = pipeline.outline(settings, chunks)
    if found:
        pipeline.compare_plans(out, found, outline)
    plain = settings.to_dict()
    with runners.open_runner(plain) as runner:
        whole = found and all(pipeline.is_done(out, chunk) for chunk in chunks)
        schema, provenance = pipeline.planned(found) if whole else runner.describe()
        matrix_constituents(schema)
        people.index_languages(schema.labels[LANGUAGE])
        chunks = pipeline.with_attributes(chunks, people)
        plan = outline | pipeline.details(schema, provenance, chunks)
        if found:
            pipeline.compare_plans(out, found, plan)
        else:
            pipeline.write_plan(out, plan)
        print(_describe(chunks, out, schema, notes), flush=True)
        seconds = run_chunks(chunks[part[0] :: part[1]], Job(out, schema, json.dumps(plain)), runner)
    if missing := sum(not pipeline.is_done(out, chunk) for chunk in chunks):
        print(f"{out}: {missing} shards are left to others; the last to finish writes the metadata")
        return
    print(_finish(chunks, out, schema, provenance), _stages(seconds), sep="")


def _check(settings: ml_collections.ConfigDict) -> None:
    check_config(settings)
    if not settings.videos:
        raise UserError("no videos: give their folder, or a CSV that lists them, with --videos PATH")
    if not settings.out:
        raise UserError("nowhere to write: give the dataset's folder with --out DIR")


def _read(settings: ml_collections.ConfigDict) -> tuple[list[Clip], People, list[str]]:
    """The clips, what is known of their speakers, and lines that say how they were found and matched."""
    videos = local_path(settings.videos)
    if videos.suffix.lower() == ".csv":
        if settings.attributes:
            raise UserError(f"{videos} is a list with attributes of its own; leave config.extract.attributes empty")
        clips, people = read_list(videos)
        notes = [_spell_speakers(clips, f"the column speaker_id of {videos.name}")] if clips else []
    else:
        clips, people, notes = _read_folder(videos, settings.attributes)
    if not clips:
        raise UserError(f"{videos}: no clips here: videos ({spell(VIDEO)}), or sounds ({spell(SOUND)}) beside images")
    if LANGUAGE not in settings.extractors:
        people.index_languages(models.planned_schema(settings).labels[LANGUAGE])
    return clips, people, notes


def _read_folder(videos: Path, attributes: str) -> tuple[list[Clip], People, list[str]]:
    found, people, notes = find_clips(videos), People(), []
    table = local_path(attributes or videos / PEOPLE)
    if attributes or os.path.lexists(table):  # a link that leads nowhere is a mistake
        people, notes = read_people(table, found.clips)
    clips = [people.identify(clip) for clip in found.clips]
    if not clips:
        return clips, people, notes
    check_speakers(videos, clips, {*people.by_speaker, *people.speakers.values()})
    if people.speakers:
        found.rules[f"the column speaker_id of {table.name}"] = sum(clip.clip_id in people.speakers for clip in clips)
    rules = "; ".join(f"{count} clips by {rule}" for rule, count in found.rules.items() if count)
    parts = {name for clip in clips for name in clip.clip_id.split("/")[:-1]} & {"train", "dev", "test"}
    if found.rules[NAMED] and parts and not people.splits:
        notes.append(f"the folders {', '.join(sorted(parts))} are not taken for splits; a column split in {PEOPLE} is")
    return clips, people, [_spell_speakers(clips, rules), *_spell_aliases(found), *notes]


def _spell_speakers(clips: Sequence[Clip], rules: str) -> str:
    counts = Counter(clip.speaker_id for clip in clips)
    ((most, clips_of_most),) = counts.most_common(1)
    return f"speakers: {len(counts)}, such as {most!r} with {clips_of_most} of {len(clips)} clips ({rules})"


def _spell_aliases(found: Found) -> list[str]:
    if not found.aliases:
        return []
    pairs = [f"{name!r} is {first!r}" for name, first in found.aliases]
    return [f"{len(pairs)} files or folders were met again under another name and passed over: {examples(pairs)}"]


def _describe(chunks: Sequence[Chunk], out: Path, schema: Schema, notes: Sequence[str]) -> str:
    lines = [f"{out}: {len(chunks)} shards, {sum(pipeline.is_done(out, chunk) for chunk in chunks)} of them done"]
    lines += [f"  {note}" for note in notes]
    for split, shards in pipeline.count_shards(chunks).items():
        clips = [clip for chunk in chunks if chunk.split == split for clip in chunk.clips]
        speakers = len({clip.speaker_id for clip in clips})
        lines.append(f"  {split}: {len(clips)} clips of {speakers} speakers in {shards} shards")
    if not pipeline.count_shards(chunks)["train"]:
        lines.append(
            "  no training split: a trained system can be evaluated on this dataset, none can be trained on it"
        )
    for part in schema.constituents:
        about = "; ".join(text for text in (part.extractor, part.windows, part.weights) if text)
        lines.append(f"  {part.name}: {part.rows} rows of {part.width} ({about})")
    own = {part.name for part in schema.constituents} | {*schema.labels, "age"}
    rows = matrix_constituents(schema)
    lines.append(f"  matrix: {spell_rows([p for p in rows if p.name in own])} of {MATRIX_ROWS} rows")
    return "\n".join(lines)


def _expect(chunks: Sequence[Chunk], schema: Schema) -> str:
    """How large the dataset will be."""
    clip = FACE_BYTES + sum(2 * part.rows * part.width for part in schema.constituents)
    total = clip * sum(len(chunk.clips) for chunk in chunks)
    return f"  about {clip / 1e3:.0f} kB a clip, {total / 1e9:.3g} GB in all; nothing was written"


def run_chunks(chunks: Sequence[Chunk], job: Job, runner: runners.Runner) -> Counter[str]:
    """Does the chunks that are not done yet, with a progress bar in clips; returns seconds by stage and `clips`."""
    pending = [chunk for chunk in chunks if not pipeline.is_done(job.out, chunk)]
    total = Counter[str]()
    with _progress(chunks, pending, total) as report:
        for chunk, done in runner.run(pending, job):
            total.update(done.seconds)
            total["clips"] += len(chunk.clips)
            report(chunk, done)
    return total


@contextmanager
def _progress(chunks: Sequence[Chunk], pending: Sequence[Chunk], total: Counter) -> Iterator:
    count = sum(len(chunk.clips) for chunk in chunks)
    left = sum(len(chunk.clips) for chunk in pending)
    failed = 0
    with tqdm(total=count, initial=count - left, unit="clip", desc="extract", disable=not pending) as bar:

        def report(chunk: Chunk, done: Done) -> None:
            nonlocal failed
            failed += done.failed
            stages = [stage for stage in total if stage not in ("clips", "total", "waiting")]
            slowest = max(stages, key=total.__getitem__)
            bar.set_postfix_str(f"failed={failed}, slowest {slowest} {total['clips'] / total[slowest]:.3g} clips/s")
            bar.update(len(chunk.clips))

        yield report


def _stages(total: Counter) -> str:
    """What each stage took of a worker's time, in seconds a clip; sound and faces are decoded beside the rest."""
    if not (clips := total["clips"]):
        return ""
    beside = ("sound", "face")
    times = {stage: value for stage, value in total.items() if stage not in ("clips", "total", *beside)}
    times["writing"] = total["total"] - sum(times.values())
    outside = (times["waiting"] + times["writing"]) / total["total"]
    times |= {f"{stage} (beside)": total[stage] for stage in beside}
    lines = [
        f"  {stage}: {value / clips:.4f} s, {clips / value:.3g} clips/s" for stage, value in times.items() if value
    ]
    return "\n".join([f"\na worker's time for each clip, {outside:.1%} of it outside the models:", *lines])


def _finish(chunks: Sequence[Chunk], out: Path, schema: Schema, provenance: dict) -> str:
    """Writes metadata and failures of the finished shards; returns the summary."""
    written = dict.fromkeys(SPLITS, 0)
    failures: list[dict] = []
    losses: list[dict] = []
    for chunk in chunks:
        summary = pipeline.read_summary(out, chunk)
        written[chunk.split] += len(summary["clips"])
        failures += summary["failures"]
        losses += summary["losses"]
    write_atomically(out / FAILURES, _table(failures))
    write_atomically(out / LOSSES, _table(losses))
    planned = pipeline.count_shards(chunks)
    if not any(written.values()) or (planned["train"] and not written["train"]):
        part = " of the training split" if planned["train"] else ""
        raise UserError(f"no clip{part} could be used; {out / FAILURES} says why")
    _tidy(out)
    finalise(out, schema, planned, provenance)
    return _summarise(out, written, failures, losses)


def _table(failures: Sequence[dict]) -> bytes:
    text = io.StringIO()
    rows = csv.DictWriter(text, ["clip", "reason"], lineterminator="\n")
    rows.writeheader()
    rows.writerows(failures)
    return text.getvalue().encode()


def _tidy(out: Path) -> None:
    """Removes what killed runs left of shards; metadata may be in the making by another share's end."""
    for folder in (out, out / "chunks"):
        for path in folder.glob(".slf-*.tmp-*"):
            path.unlink(missing_ok=True)


def _summarise(out: Path, written: dict[str, int], failures: Sequence[dict], losses: Sequence[dict]) -> str:
    lines = [f"{out}: " + ", ".join(f"{count} {split}" for split, count in written.items()) + " clips"]
    if losses:
        lines.append(f"{len(losses)} of them are damaged in part and used without those parts, see {out / LOSSES}")
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
            "python -m extract.run --config configs/base.py --videos list.csv --out data/mine --runner ray",
            "python -m extract.run --config configs/base.py --videos ~/vox2 --out data/vox2 --shard-range 3/16",
        ],
    )
    arguments.add_argument(
        "--videos", metavar="PATH", help="folder of videos, or CSV list of them, instead of config.extract.videos"
    )
    arguments.add_argument("--out", metavar="DIR", help="the dataset's folder, instead of config.extract.out")
    arguments.add_argument("--runner", choices=runners.RUNNERS, help="instead of config.extract.runner")
    arguments.add_argument(
        "--shard-range", metavar="I/N", default="0/1", help="for job arrays: do the I-th of N equal shares, I from 0"
    )
    arguments.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    args, config = cli.parse_with_config(arguments, argv)
    for name in ("videos", "out", "runner"):
        if (value := getattr(args, name)) is not None:
            config.extract[name] = value
    try:
        extract(config.extract, dry_run=args.dry_run, part=_part(args.shard_range))
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on from the shards that are finished") from None


def _part(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise UserError(f"--shard-range {text}: give I/N with I from 0 to N-1, as in 0/16 ... 15/16")
    return int(number), int(count)


if __name__ == "__main__":
    cli.run(main)
