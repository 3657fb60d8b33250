"""Checkpoints of a stage.

A checkpoint has three parts: `ema` (the averaged parameters, all that sampling needs), `training` (the rest of the
state) and `meta` (config, schema and statistics of the features, digests). Orbax writes it under a temporary name and
renames it, but stores no checksum of its data: our own digest is checked on restore. A new checkpoint is read back
before older ones are removed, and before a run reports that it has finished.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from slf_common.errors import UserError
from slf_common.files import local_path
from slf_jax import distributed
from slf_jax.training.metrics import VALIDATION
from slf_jax.training.state import TrainState
from tfrecords.schema import Schema

TRAINING = ("step", "skipped", "usual_loss", "params", "opt_state")  # all fields of the state but the EMA


class Damaged(UserError):
    """A checkpoint that cannot be read, or whose values are not those that were saved."""


def digest(tree: Any) -> str:
    """A hash of the values, names, shapes and types of a pytree of arrays."""
    total = hashlib.blake2b(digest_size=16)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        leaf = np.ascontiguousarray(leaf)
        total.update(f"{jax.tree_util.keystr(path)}{leaf.shape}{leaf.dtype}".encode())
        total.update(leaf.view(np.uint8).reshape(-1).data if leaf.ndim else leaf.tobytes())
    return total.hexdigest()


@dataclasses.dataclass(frozen=True)
class Meta:
    """The metadata of a checkpoint: its config, and of the training data the schema, the statistics by constituent,
    and the provenance (`tfrecords.reader.Clips`).
    """

    config: ml_collections.ConfigDict
    schema: Schema
    statistics: Mapping[str, Mapping[str, np.ndarray]]
    provenance: Mapping[str, Any]

    def to_json(self) -> dict:
        """The metadata as a JSON object."""
        statistics = {name: {k: v.tolist() for k, v in both.items()} for name, both in self.statistics.items()}
        return {
            "config": json.loads(self.config.to_json()),
            "schema": self.schema.to_json(),
            "statistics": statistics,
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_json(cls, data: Mapping) -> Meta:
        """The inverse of `to_json`."""
        statistics = {
            name: {key: np.array(value, np.float32) for key, value in both.items()}
            for name, both in data["statistics"].items()
        }
        config = ml_collections.ConfigDict(data["config"], convert_dict=True)
        return cls(config, Schema.from_json(data["schema"]), statistics, data["provenance"])


class Checkpoints:
    """The checkpoints of one stage of a run. Use as a context manager: leaving it waits until all are saved.

    Args:
      max_to_keep: number of newest checkpoints to keep; None: open for reading only.
      keep_best: number of checkpoints of lowest validation loss to keep as well.
    """

    def __init__(self, workdir: str | Path, stage: str, max_to_keep: int | None = None, keep_best: int = 0) -> None:
        self.path = checkpoint_folder(workdir) / stage
        self._max_to_keep, self._keep_best = max_to_keep or 0, keep_best
        self._unverified: tuple[Any, int] | None = None  # shapes and step of a checkpoint not yet read back
        reading = max_to_keep is None
        options = ocp.CheckpointManagerOptions(
            best_fn=lambda metrics: metrics[VALIDATION],
            best_mode="min",
            create=not reading,
            read_only=reading,
            cleanup_tmp_directories=not reading,
        )
        # Orbax finds the parts of an OCDBT checkpoint by a glob over its whole path, which fails if a folder's name
        # contains wildcards: there each array is stored as a file. Both formats can be read anywhere.
        arrays = {"use_ocdbt": not glob.has_magic(str(self.path))}
        handlers = {part: ocp.StandardCheckpointHandler(**arrays) for part in ("ema", "training")}
        self._manager = ocp.CheckpointManager(
            self.path, options=options, item_handlers={**handlers, "meta": ocp.JsonCheckpointHandler()}
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type | None, *exc: object) -> None:
        try:
            if kind is None:
                self._settle()
        finally:
            with self._saving() if kind is None else contextlib.suppress(Exception):
                self._manager.close()

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        """Turns a failure to write a checkpoint into a `UserError`."""
        try:
            yield
        except (OSError, ValueError) as error:
            kept = self.latest()
            raise UserError(
                f"{self.path}: a checkpoint could not be written ({_reason(error)}); "
                + (f"that of step {kept} is intact. " if kept else "there is no earlier one. ")
                + "Free some space there, then run the same command again"
            ) from error

    def latest(self) -> int | None:
        """The newest step, None if there is none."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """All steps, in ascending order."""
        return sorted(self._manager.all_steps())

    def best(self) -> int | None:
        """The step of lowest validation loss; None if no checkpoint has one."""
        return next(iter(self._by_loss()), None)

    def _by_loss(self) -> list[int]:
        """The steps of the checkpoints that have a validation loss, lowest first, newer first among equals."""
        losses = {}
        for step in self._manager.all_steps():
            try:
                losses[step] = (self._manager.metrics(step) or {}).get(VALIDATION)
            except (ValueError, OSError) as error:
                raise Damaged(f"{self.path / str(step)}: its metrics cannot be read ({_reason(error)})") from None
        return sorted((step for step in losses if losses[step] is not None), key=lambda step: (losses[step], -step))

    def save(self, state: TrainState, meta: Meta, validation_loss: float | None = None) -> None:
        """Saves in the background; does nothing if this step is already saved.

        Raises `UserError` if this checkpoint or the previous one cannot be written or read back.
        """
        state = jax.device_get(state)
        step = int(state.step)
        self._settle()
        if step in self._manager.all_steps():
            return
        training = {field: getattr(state, field) for field in TRAINING}
        digests = {"ema": digest(state.ema), "training": digest(training)}
        with self._saving():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    ema=ocp.args.StandardSave(state.ema),
                    training=ocp.args.StandardSave(training),
                    meta=ocp.args.JsonSave({**meta.to_json(), "digests": digests}),
                ),
                metrics=None if validation_loss is None else {VALIDATION: validation_loss},
            )
        self._unverified = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype), state), step

    def _settle(self) -> None:
        """Waits for the checkpoint being written, reads it back, and only then removes older ones."""
        with self._saving():
            self._manager.wait_until_finished()
        if self._unverified is None:
            return
        (like, step), self._unverified = self._unverified, None
        try:
            with jax.transfer_guard("allow"):
                self.restore(step, like)
        except UserError as error:
            older = [other for other in self._manager.all_steps() if other < step]
            resumes = f"from step {max(older)}" if older else "from the beginning"
            raise UserError(
                f"{error}, though it has just been written: check the disk. The same command with --skip-damaged "
                f"resumes {resumes}"
            ) from None
        steps = self.steps()
        for old in set(steps[: -self._max_to_keep]) - set(self._by_loss()[: self._keep_best]):
            self._manager.delete(old)

    def meta(self, step: int) -> Meta:
        """The metadata of a step; raises `Damaged` if it cannot be read."""
        try:
            return Meta.from_json(self._raw_meta(step))
        except (ValueError, OSError, KeyError, TypeError) as error:
            raise Damaged(f"{self.path / str(step)}: damaged (no meta: {_reason(error)})") from None

    def _raw_meta(self, step: int) -> dict:
        return self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]

    def restore_ema(self, step: int, like: Any) -> tuple[Any, str]:
        """The averaged parameters, shaped as `like`, and their digest; raises `UserError` if damaged."""
        return self._restore(step, "ema", like)

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The whole state, shaped as `like`; raises `Damaged` if it differs from what was saved."""
        ema, _ = self._restore(step, "ema", like.ema)
        training, _ = self._restore(step, "training", {field: getattr(like, field) for field in TRAINING})
        return TrainState(ema=ema, **training)

    def resume(self, like: TrainState, skip_damaged: bool) -> TrainState | None:
        """The newest state; None if there is none.

        A damaged checkpoint raises `UserError`; with `skip_damaged` it is set aside and the previous one is used.
        """
        while (step := self.latest()) is not None:
            try:
                return self.restore(step, like)
            except Damaged as error:
                older = [other for other in self._manager.all_steps() if other < step]
                resumes = f"from step {max(older)}" if older else "from the beginning: it is the only one"
                if not skip_damaged:
                    raise UserError(f"{error}. Add --skip-damaged to set it aside and resume {resumes}") from None
                self._set_aside(step)
                if distributed.is_main():
                    print(f"{error}; set aside, resuming {resumes}")
        return None

    def _set_aside(self, step: int) -> None:
        if distributed.is_main():
            aside = self.path.parent / f"damaged-{self.path.name}-{step}"
            while aside.exists():  # the same step was damaged before
                aside = aside.with_name(f"{aside.name}-again")
            (self.path / str(step)).rename(aside)
        multihost_utils.sync_global_devices(f"{self.path} {step} set aside")
        self._manager.reload()

    def _restore(self, step: int, part: str, like: Any) -> tuple[Any, str]:
        shapes = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
        try:
            args = ocp.args.Composite(**{part: ocp.args.StandardRestore(shapes)})
            tree = self._manager.restore(step, args=args)[part]
            expected = self._raw_meta(step)["digests"][part]
        except (ValueError, OSError, KeyError) as error:
            raise Damaged(f"{self.path / str(step)}: cannot be read as this model ({_reason(error)})") from None
        if jax.tree.map(np.shape, tree) != jax.tree.map(np.shape, shapes):
            raise UserError(f"{self.path / str(step)}: its model has other sizes than this config's")
        found = digest(tree)
        if found != expected:
            raise Damaged(f"{self.path / str(step)}: damaged ({part} does not match its digest)")
        return tree, found


def _reason(error: Exception) -> str:
    """The system's message for a disk that cannot be written, if the error contains one; else its first line."""
    text = str(error)
    known = ("No space left on device", "Disk quota exceeded", "File too large", "Read-only file system")
    return next((reason for reason in known if reason in text), (text.splitlines() or [type(error).__name__])[0][:200])


def checkpoint_folder(workdir: str | Path) -> Path:
    """The folder of a run's checkpoints. Raises `UserError` for a path that TensorStore would misread."""
    path = local_path(workdir).absolute() / "checkpoints"
    if "\\" in str(path):
        raise UserError(f"{path}: checkpoints cannot be stored in a path that contains a backslash; rename the folder")
    return path


def open_checkpoints(workdir: str | Path, name: str) -> Checkpoints:
    """Opens the checkpoints of a trained stage for reading. Raises `UserError` if there are none."""
    if not any(checkpoint_folder(workdir).glob(f"{name}/[0-9]*")):
        raise UserError(
            f"{workdir}: no checkpoint of stage {name!r}; train it with "
            f"`python -m slf_jax.train --config CONFIG --config.workdir={workdir}`"
        )
    return Checkpoints(workdir, name)


def latest_ema(workdir: str | Path, name: str, like: Any) -> Any:
    """The newest EMA weights of a run's stage, shaped as `like`. Raises `UserError` if they cannot be used."""
    with open_checkpoints(workdir, name) as checkpoints:
        if (step := checkpoints.latest()) is None:
            raise UserError(f"{checkpoints.path}: no complete checkpoint")
        try:
            return checkpoints.restore_ema(step, like)[0]
        except UserError as error:
            raise UserError(f"{error}; its config.model and config.data.inputs must equal this config's") from None
