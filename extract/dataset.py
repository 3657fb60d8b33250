"""Extracts a dataset: find the clips, plan the shards, run the chunks, write the metadata."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import ml_collections
from tqdm import tqdm

from extract import plan, report
from extract.attributes import LANGUAGE, AttributeTable, read_attributes, read_clip_list
from extract.chunk import ChunkResult, RunSpec
from extract.clips import SOUND, VIDEO, Clip, add_faces, check_speakers, find_clips, format_suffixes
from extract.plan import Chunk
from extract.runners import Runner, open_runner
from extract.settings import check_config, planned_schema
from slf_common.errors import UserError
from slf_common.files import check_writable, local_path, write_atomically
from tfrecords.schema import Schema, matrix_constituents
from tfrecords.writer import SPLITS, finalise

ATTRIBUTES_FILE = "people.csv"  # the attributes CSV in a folder of videos
METADATA_FILES = ("metadata.json", "dataset_info.json", "features.json")


def extract(settings: ml_collections.ConfigDict, *, dry_run: bool = False, part: tuple[int, int] = (0, 1)) -> None:
    """Extracts the dataset that `config.extract` describes, or only reports what would be extracted.

    Writes the shards to `settings.out` and, when all of them exist, the metadata, `failures.csv` and `losses.csv`.
    `part` (i, n) processes every n-th shard, starting with the i-th. Raises `UserError` for invalid settings, and if no
    clip, or none of the training split, is usable; then there is no metadata.
    """
    _check(settings)
    out = local_path(settings.out)
    if not dry_run:
        check_writable(out, *METADATA_FILES, plan.FAILURES_FILE, plan.LOSSES_FILE, "chunks/")
    clips, table, notes = _read_inputs(settings)
    chunks = plan.make_chunks(clips, table, settings.clips_per_shard)
    if dry_run:
        schema = planned_schema(settings)
        print(report.describe_plan(chunks, out, schema, notes), report.estimate_size(chunks, schema), sep="\n")
        return
    stored = plan.read_plan(out)
    plain_settings = settings.to_dict()
    settings_plan = plan.plan_settings(plain_settings, chunks)
    if stored:
        plan.compare_plans(out, stored, settings_plan)
    with open_runner(plain_settings) as runner:
        if stored and all(plan.is_done(out, chunk) for chunk in chunks):
            schema, provenance = plan.stored_models(stored)  # no need to load the models
        else:
            schema, provenance, missing = runner.describe()
            notes += missing
        matrix_constituents(schema)
        table.index_languages(schema.labels[LANGUAGE])
        chunks = plan.with_attributes(chunks, table)
        whole_plan = settings_plan | plan.plan_models(schema, provenance, chunks)
        if stored:
            plan.compare_plans(out, stored, whole_plan)
        else:
            plan.write_plan(out, whole_plan)
        print(report.describe_plan(chunks, out, schema, notes), flush=True)
        spec = RunSpec(out, schema, json.dumps(plain_settings), provenance["faces"]["detector"])
        seconds = run_chunks(chunks[part[0] :: part[1]], spec, runner)
    if remaining := sum(not plan.is_done(out, chunk) for chunk in chunks):
        print(f"{out}: {remaining} shards are left to other jobs; the last job to finish writes the metadata")
        return
    print(_finish(chunks, out, schema, provenance), report.describe_stages(seconds), sep="")


def _check(settings: ml_collections.ConfigDict) -> None:
    check_config(settings)
    if not settings.videos:
        raise UserError("no videos: give a folder of videos, or a CSV that lists them, with --videos PATH")
    if not settings.out:
        raise UserError("no output folder: give the dataset's folder with --out DIR")


def _read_inputs(settings: ml_collections.ConfigDict) -> tuple[list[Clip], AttributeTable, list[str]]:
    """Returns the clips, their known attributes, and lines that describe how speakers were found and matched."""
    videos = local_path(settings.videos)
    if videos.suffix.lower() == ".csv":
        if settings.attributes:
            raise UserError(f"{videos} is a clip list, which has its own attributes; remove config.extract.attributes")
        clips, table = read_clip_list(videos)
        notes = [report.describe_speakers(clips, f"the column speaker_id of {videos.name}")] if clips else []
    else:
        clips, table, notes = _read_folder(videos, settings.attributes)
    if not clips:
        kinds = f"videos ({format_suffixes(VIDEO)}), or sounds ({format_suffixes(SOUND)}) next to images"
        raise UserError(f"{videos}: no clips here; clips are {kinds}")
    if LANGUAGE not in settings.extractors:
        table.index_languages(planned_schema(settings).labels[LANGUAGE])
    return clips, table, notes


def _read_folder(videos: Path, attributes: str) -> tuple[list[Clip], AttributeTable, list[str]]:
    found, table = find_clips(videos), AttributeTable()
    notes: list[str] = []
    path = local_path(attributes or videos / ATTRIBUTES_FILE)
    if attributes or os.path.lexists(path):  # a broken link is an error
        table, notes = read_attributes(path, found.clips)
    clips = add_faces(videos, [table.identify(clip) for clip in found.clips], table.faces)
    if not clips:
        return clips, table, notes
    check_speakers(videos, clips, {*table.by_speaker, *table.speakers.values()})
    return clips, table, [*report.describe_folder(found, clips, table, path), *notes]


def run_chunks(chunks: Sequence[Chunk], spec: RunSpec, runner: Runner) -> dict[str, float]:
    """Processes the unfinished chunks with a progress bar in clips.

    Returns the seconds by stage, summed over all workers, and under "clips" the number of clips.
    """
    pending = [chunk for chunk in chunks if not plan.is_done(spec.out, chunk)]
    total: dict[str, float] = {}
    with _progress(chunks, pending, total) as update:
        for chunk, result in runner.run(pending, spec):
            for stage, seconds in result.seconds.items():
                total[stage] = total.get(stage, 0.0) + seconds
            total["clips"] = total.get("clips", 0) + len(chunk.clips)
            update(chunk, result)
    return total


@contextmanager
def _progress(
    chunks: Sequence[Chunk], pending: Sequence[Chunk], total: dict[str, float]
) -> Iterator[Callable[[Chunk, ChunkResult], None]]:
    count = sum(len(chunk.clips) for chunk in chunks)
    left = sum(len(chunk.clips) for chunk in pending)
    failed = 0
    with tqdm(total=count, initial=count - left, unit="clip", desc="extract", disable=not pending) as bar:

        def update(chunk: Chunk, result: ChunkResult) -> None:
            nonlocal failed
            failed += result.failed
            stages = [stage for stage in total if stage not in ("clips", "total", "waiting")]
            slowest = max(stages, key=total.__getitem__)
            bar.set_postfix_str(f"failed={failed}, slowest {slowest} {total['clips'] / total[slowest]:.3g} clips/s")
            bar.update(len(chunk.clips))

        yield update


def _finish(chunks: Sequence[Chunk], out: Path, schema: Schema, provenance: dict) -> str:
    """Writes the metadata and the failures of all shards; returns the summary to print."""
    written = dict.fromkeys(SPLITS, 0)
    detectors: Counter[str] = Counter()
    failures: list[dict] = []
    losses: list[dict] = []
    for chunk in chunks:
        summary = plan.read_summary(out, chunk)
        written[chunk.split] += len(summary["clips"])
        detectors.update(summary["detectors"])
        failures += summary["failures"]
        losses += summary["losses"]
    write_atomically(out / plan.FAILURES_FILE, _csv(failures))
    write_atomically(out / plan.LOSSES_FILE, _csv(losses))
    shards = plan.count_shards(chunks)
    if not any(written.values()) or (shards["train"] and not written["train"]):
        split = " of the training split" if shards["train"] else ""
        raise UserError(f"no clip{split} is usable; see {out / plan.FAILURES_FILE}")
    _remove_temporary_files(out)
    found = report.count_faces(detectors)
    finalise(out, schema, shards, provenance | {"faces": provenance["faces"] | {"found by": found}})
    return report.describe_result(out, written, found, failures, losses)


def _csv(rows: Sequence[dict]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["clip", "reason"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _remove_temporary_files(out: Path) -> None:
    """Removes the unfinished shards of killed runs; not metadata, which another job may be writing."""
    for folder in (out, out / "chunks"):
        for path in folder.glob(".slf-*.tmp-*"):
            path.unlink(missing_ok=True)
