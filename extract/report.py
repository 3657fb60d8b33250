"""The text that `extract.run` prints: how speakers were found, the plan, the result, the time by stage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from extract import plan
from extract.attributes import AttributeTable
from extract.clips import NAMED, Clip, FoundClips
from extract.matching import format_examples
from extract.plan import Chunk
from tfrecords.schema import MATRIX_ROWS, Schema, format_rows, matrix_constituents

FACE_BYTES = 30_000  # of a 128x128 photograph as PNG, roughly
CONCURRENT = ("sound", "face")  # stages that run in a thread next to the models


def describe_folder(found: FoundClips, clips: Sequence[Clip], table: AttributeTable, path: Path) -> list[str]:
    """Describes how the speakers in a folder were found, and the duplicates; `path` is the table's."""
    rules = dict(found.rules)
    if table.speakers:
        rules[f"the column speaker_id of {path.name}"] = sum(clip.clip_id in table.speakers for clip in clips)
    text = "; ".join(f"{count} clips by {rule}" for rule, count in rules.items() if count)
    lines = [describe_speakers(clips, text)]
    if found.aliases:
        pairs = [f"{name!r} is {original!r}" for name, original in found.aliases]
        lines.append(f"{len(pairs)} files or folders skipped as duplicates: {format_examples(pairs)}")
    parts = {name for clip in clips for name in clip.clip_id.split("/")[:-1]} & {"train", "dev", "test"}
    if found.rules[NAMED] and parts and not table.splits:
        names = ", ".join(sorted(parts))
        lines.append(f"the folders {names} do not set the split; the column split in {path.name} does")
    return lines


def describe_speakers(clips: Sequence[Clip], rules: str) -> str:
    """Describes the number of speakers and the one with most clips; `rules`: how they were found."""
    counts = Counter(clip.speaker_id for clip in clips)
    ((most, clips_of_most),) = counts.most_common(1)
    return f"speakers: {len(counts)}, for example {most!r} with {clips_of_most} of {len(clips)} clips ({rules})"


def describe_plan(chunks: Sequence[Chunk], out: Path, schema: Schema, notes: Sequence[str]) -> str:
    """Describes the splits, the constituents and their rows in the feature matrix."""
    lines = [f"{out}: {len(chunks)} shards, {sum(plan.is_done(out, chunk) for chunk in chunks)} of them done"]
    lines += [f"  {note}" for note in notes]
    for split, shards in plan.count_shards(chunks).items():
        clips = [clip for chunk in chunks if chunk.split == split for clip in chunk.clips]
        speakers = len({clip.speaker_id for clip in clips})
        lines.append(f"  {split}: {len(clips)} clips of {speakers} speakers in {shards} shards")
    if not plan.count_shards(chunks)["train"]:
        lines.append("  no training split: this dataset can be used to evaluate a trained system, not to train one")
    for part in schema.constituents:
        about = "; ".join(text for text in (part.extractor, part.windows, part.weights) if text)
        lines.append(f"  {part.name}: {part.rows} rows of {part.width} ({about})")
    own = {part.name for part in schema.constituents} | {*schema.labels, "age"}
    rows = matrix_constituents(schema)
    lines.append(f"  matrix: {format_rows([part for part in rows if part.name in own])} of {MATRIX_ROWS} rows")
    return "\n".join(lines)


def estimate_size(chunks: Sequence[Chunk], schema: Schema) -> str:
    """Describes the expected size of the dataset."""
    clip = FACE_BYTES + sum(2 * part.rows * part.width for part in schema.constituents)
    total = clip * sum(len(chunk.clips) for chunk in chunks)
    return f"  about {clip / 1e3:.0f} kB per clip, {total / 1e9:.3g} GB in total; nothing was written"


def describe_stages(total: Mapping[str, float]) -> str:
    """Describes a worker's time in each stage, in seconds per clip; `total` is from `run_chunks`."""
    if not total:
        return ""
    clips = total["clips"]
    times = {stage: value for stage, value in total.items() if stage not in ("clips", "total", *CONCURRENT)}
    times["writing"] = total["total"] - sum(times.values())
    outside = (times["waiting"] + times["writing"]) / total["total"]
    times |= {f"{stage} (concurrent)": total.get(stage, 0.0) for stage in CONCURRENT}
    lines = [
        f"  {stage}: {value / clips:.4f} s, {clips / value:.3g} clips/s" for stage, value in times.items() if value
    ]
    return "\n".join([f"\ntime per clip and worker, {outside:.1%} of it outside the models:", *lines])


def count_faces(detectors: Mapping[str, int]) -> str:
    """Formats the number of faces that each detector found: `dlib 870, opencv 98`."""
    return ", ".join(f"{name} {count}" for name, count in detectors.items())


def describe_result(
    out: Path, written: Mapping[str, int], found: str, failures: Sequence[Mapping], losses: Sequence[Mapping]
) -> str:
    """Describes a finished dataset: clips by split, faces by detector, damaged clips, failed clips by reason."""
    lines = [f"{out}: " + ", ".join(f"{count} {split}" for split, count in written.items()) + " clips"]
    lines.append(f"faces found by: {found}")
    if losses:
        lines.append(
            f"{len(losses)} of them are partly damaged and used without the damaged parts, see {out / plan.LOSSES_FILE}"
        )
    if failures:
        lines.append(f"{len(failures)} clips failed, see {out / plan.FAILURES_FILE}:")
        reasons = Counter(failure["reason"] for failure in failures)
        lines += [f"  {count} {reason}" for reason, count in reasons.most_common()]
    return "\n".join(lines)
