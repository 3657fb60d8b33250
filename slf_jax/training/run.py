"""Prepares a run directory: opens the data, builds the system, and checks that the config may resume the run."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections

from slf_common.errors import UserError
from slf_common.files import check_writable, local_path, write_atomically
from slf_jax import distributed, features
from slf_jax.cascade.distillation import Teacher
from slf_jax.cascade.sizes import STAGES
from slf_jax.cascade.system import System, build_system
from slf_jax.training.checkpoints import Checkpoints, Damaged, Meta, checkpoint_folder
from slf_jax.training.settings import stages_of
from tfrecords.reader import Absent, Clips
from tfrecords.schema import FACE_EMBEDDING

# Settings that determine the meaning of a checkpoint's values: a run cannot resume with others. Some of the model's
# settings only affect how it is computed.
FIXED = ("model", "diffusion", "distill", "data.inputs", "train.base.batch_size", "train.upsampler.batch_size", "seed")
HARMLESS = (".attention", ".remat", ".teacher")  # a teacher may have been moved; its digests are fixed


@dataclasses.dataclass(frozen=True)
class Run:
    """The state that all stages of a run share. `meta` is saved in every checkpoint, `teacher` is not."""

    meta: Meta
    system: System
    clips: Clips
    held_out: Clips | None
    mesh: jax.sharding.Mesh
    skip_damaged: bool
    teacher: Teacher | None = None

    @property
    def config(self) -> ml_collections.ConfigDict:
        return self.meta.config

    @property
    def workdir(self) -> Path:
        return local_path(self.config.workdir)


def prepare(config: ml_collections.ConfigDict, skip_damaged: bool, teacher: Teacher | None = None) -> Run:
    """Opens the data, builds the system, and starts or resumes the run directory. Raises `UserError`."""
    if distributed.is_main():
        check_writable(
            local_path(config.workdir), "config.json", "metrics.jsonl", "changes.jsonl", "samples/", "tensorboard/",
            "checkpoints/", *(f"checkpoints/{name}/" for name in stages_of(config)), flag="--config.workdir",
        )  # fmt: skip
    clips, held_out = _open(config.data, "train"), _open_validation(config.data)
    layout = features.make_layout(clips.schema)
    system = build_system(config, layout, clips.statistics)
    features.check_inputs(tuple(config.train.constituent_drop), layout)
    _check_identity(config.model.identity_width, clips)
    meta = Meta(config, clips.schema, clips.statistics, clips.provenance)
    run = Run(meta, system, clips, held_out, distributed.make_mesh(), skip_damaged, teacher)
    changes = check_same_run(config, run.workdir)
    _check_same_data(run)
    if distributed.is_main():
        if changes:
            _record(changes, run.workdir)
        write_atomically(run.workdir / "config.json", config.to_json_best_effort(indent=2).encode())
        _describe(run)
    # No process may create checkpoint folders before all processes have checked whether there are any.
    distributed.wait_for_all("prepared")
    return run


def _check_identity(width: int, clips: Clips) -> None:
    """Raises `UserError` if an identity head is to be trained and the data has no face embeddings of its width."""
    found = [part.width for part in clips.schema.constituents if part.name == FACE_EMBEDDING]
    if width and found != [width]:
        raise UserError(
            f"config.model.identity_width={width}: {clips.directory} has "
            f"{f'face embeddings of width {found[0]}' if found else 'no face embeddings (config.extract.embedder)'}; "
            f"set it to {found[0] if found else 0}"
        )


def _open(settings: ml_collections.ConfigDict, split: str) -> Clips:
    return Clips(settings.dir, split, skip_corrupt=settings.skip_corrupt)


def _open_validation(settings: ml_collections.ConfigDict) -> Clips | None:
    """The validation split, if the dataset has one."""
    try:
        return _open(settings, "validation")
    except Absent:
        return None


def check_same_run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, tuple]:
    """How `config` differs from that of the run in `workdir`: {key: (old, new)}; empty if there is no run yet.

    Raises `UserError` for changed settings with which the run cannot resume.
    """
    if not any(checkpoint_folder(workdir).glob("*/[0-9]*")):
        return {}
    path = workdir / "config.json"
    if not path.exists():
        raise UserError(
            f"{path}: missing, though the run has checkpoints; restore it, or choose another --config.workdir"
        )
    try:
        old = _flat(json.loads(path.read_text()))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); restore it, or choose another --config.workdir") from None
    new = _flat(json.loads(config.to_json()))
    changes = {key: (old.get(key), new.get(key)) for key in sorted(new.keys() | old.keys())}
    changes = {key: both for key, both in changes.items() if both[0] != both[1]}
    # How a distilled system is sampled is also how its teacher is.
    own, flag = (("sample",), "--out") if config.distill.max_scale else ((), "--config.workdir")
    fixed = [key for key in changes if key.startswith(FIXED + own) and not key.endswith(HARMLESS)]
    if fixed:
        differing = "; ".join(f"{key} is {changes[key][1]!r}, there it is {changes[key][0]!r}" for key in fixed)
        raise UserError(f"{workdir}: holds a run made with another config: {differing}. Choose another {flag}")
    return changes


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {k: v for key, child in tree.items() for k, v in _flat(child, f"{prefix}{key}.").items()}


def _check_same_data(run: Run) -> None:
    """Raises `UserError` if the run was started with other features than the dataset now has."""
    if (old := _first_meta(run.workdir)) is None:
        return
    features.check_same_features(
        run.system.inputs, old.schema, old.statistics, run.meta.schema, run.meta.statistics, run.config.data.dir,
        "choose another --config.workdir",
    )  # fmt: skip


def _first_meta(workdir: Path) -> Meta | None:
    """The metadata of the run's checkpoints, None if there are none."""
    for name in STAGES:
        if (checkpoint_folder(workdir) / name).is_dir():
            # A damaged checkpoint is reported, or set aside, when its stage resumes.
            with Checkpoints(workdir, name) as checkpoints, contextlib.suppress(Damaged):
                if (step := checkpoints.latest()) is not None:
                    return checkpoints.meta(step)
    return None


def _record(changes: Mapping[str, tuple], workdir: Path) -> None:
    """Prints how the config differs from the run's previous one, and appends it to changes.jsonl."""
    saved = {name: workdir.glob(f"checkpoints/{name}/[0-9]*") for name in STAGES}
    steps = {
        name: max((int(path.name) for path in paths if path.name.isdigit()), default=0) for name, paths in saved.items()
    }
    with (workdir / "changes.jsonl").open("a") as file:
        file.write(json.dumps({"after": steps, "changes": changes}) + "\n")
    print("changed    " + ", ".join(f"{key}: {old!r} -> {new!r}" for key, (old, new) in changes.items()))


def _describe(run: Run) -> None:
    """Prints data, inputs, devices and batches of a run."""
    config, mesh = run.config, run.mesh
    available = {part.name for part in run.clips.schema.constituents} | {"age", *run.clips.schema.labels}
    missing = [name for name in run.system.inputs if name not in available]
    masked = f" (masked, not in the data: {', '.join(missing)})" if missing else ""
    print(f"data       {config.data.dir}: {len(run.clips)} clips to train on, {len(run.held_out or ())} held out")
    print(f"inputs     {', '.join(run.system.inputs)}{masked}")
    kind = mesh.devices.flat[0].device_kind
    print(f"devices    {mesh.size} x {kind} by {config.parallel}, {jax.process_count()} process(es)")
    for name in STAGES:
        batch, parts = config.train[name].batch_size, config.train[name].accumulate
        each = f"{parts} x {batch // mesh.size // parts}" if parts > 1 else f"{batch // mesh.size}"
        print(f"batch      {name}: {batch}, {each} on each device")
