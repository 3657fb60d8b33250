"""What a training step carries, and its checkpoints.

A checkpoint has three parts: `ema` (the averaged parameters, all that sampling needs), `training` (the rest of
the state) and `meta` (config, the features' schema and statistics, digests). Orbax writes it under a temporary name and
renames it, but keeps no checksum of its data: a digest of ours is checked on restore. A new checkpoint is read back
before older ones are removed, and before a run says that it is done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.struct
import jax
import ml_collections
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from slf_common.config import override
from slf_common.errors import UserError
from slf_common.files import local_path
from slf_jax import parallel
from slf_jax.cascade import STAGES, Stage, System, build
from slf_jax.features import make_layout
from slf_jax.settings import check_sample
from tfrecords.schema import Schema

# Settings that decide what a checkpoint's numbers mean: a run cannot go on with others. Some of a model's only decide
# how it is computed.
FIXED = ("model", "diffusion", "data.inputs", "train.batch_size", "seed")
HARMLESS = (".attention", ".remat")
VALIDATION = "validation_loss"
CHECKPOINTS = ("newest", "best")  # to sample from


class Damaged(UserError):
    """A checkpoint that cannot be read, or whose numbers are not those that were saved."""


TRAINING = ("step", "skipped", "usual_loss", "params", "opt_state")  # fields of the state, all but the EMA


@flax.struct.dataclass
class TrainState:
    """Everything the next step depends on, besides the config and the data.

    `skipped` counts the steps that changed nothing, `usual_loss` is the running mean that spikes are measured against.
    """

    step: jax.Array
    skipped: jax.Array
    usual_loss: jax.Array
    params: Any
    ema: Any
    opt_state: Any


def init_state(stage: Stage, optimizer: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """A fresh state with random parameters; one jitted program."""
    return jax.jit(lambda key: _fresh(stage.init(key), optimizer))(key)


def start_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """A fresh state with these parameters."""
    return jax.jit(lambda params: _fresh(params, optimizer))(params)


def _fresh(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    none = jax.numpy.zeros((), int)
    return TrainState(none, none, jax.numpy.zeros(()), params, params, optimizer.init(params))


def digest(tree: Any) -> str:
    """A hash over the values of a pytree of arrays, with their names and shapes."""
    total = hashlib.blake2b(digest_size=16)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        leaf = np.ascontiguousarray(leaf)
        total.update(f"{jax.tree_util.keystr(path)}{leaf.shape}{leaf.dtype}".encode())
        total.update(leaf.view(np.uint8).reshape(-1).data if leaf.ndim else leaf.tobytes())
    return total.hexdigest()


@dataclasses.dataclass(frozen=True)
class Meta:
    """What stands beside the numbers in a checkpoint."""

    config: ml_collections.ConfigDict
    schema: Schema
    statistics: Mapping[str, Mapping[str, np.ndarray]]

    def to_json(self) -> dict:
        statistics = {n: {k: v.tolist() for k, v in both.items()} for n, both in self.statistics.items()}
        return {
            "config": json.loads(self.config.to_json()),
            "schema": self.schema.to_json(),
            "statistics": statistics,
        }

    @classmethod
    def from_json(cls, data: Mapping) -> Meta:
        statistics = {
            name: {key: np.array(value, np.float32) for key, value in both.items()}
            for name, both in data["statistics"].items()
        }
        config = ml_collections.ConfigDict(data["config"], convert_dict=True)
        return cls(config, Schema.from_json(data["schema"]), statistics)


class Checkpoints:
    """The checkpoints of one stage of a run. Use as a context manager: leaving it waits for what is being saved.

    Args:
      keep, keep_best: how many of the newest, and of those of lowest validation loss, stay; None: for reading only.
    """

    def __init__(self, workdir: str | Path, stage: str, keep: int | None = None, keep_best: int = 0) -> None:
        self.path = checkpoint_folder(workdir) / stage
        self._keep, self._keep_best, self._unread = keep, keep_best, None
        reading = keep is None
        options = ocp.CheckpointManagerOptions(
            best_fn=lambda metrics: metrics[VALIDATION],
            best_mode="min",
            create=not reading,
            read_only=reading,
            cleanup_tmp_directories=not reading,
        )
        # Orbax finds the parts of an OCDBT checkpoint by a glob over its whole path. Below a folder that reads as a
        # pattern it finds none, so there each array is a file of its own. Either kind is read wherever it lies.
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
        """Tells in one line why a checkpoint could not be written."""
        try:
            yield
        except (OSError, ValueError) as error:
            kept = self.latest()
            raise UserError(
                f"{self.path}: a checkpoint could not be written ({_reason(error)}); "
                + (f"the one of step {kept} is whole. " if kept else "there is none before it. ")
                + "Make room there, then run the same command again"
            ) from error

    def latest(self) -> int | None:
        return self._manager.latest_step()

    def best(self) -> int | None:
        """The step of lowest validation loss among the checkpoints that have one."""
        return next(iter(self._by_loss()), None)

    def _by_loss(self) -> list[int]:
        """The steps of the checkpoints that have a validation loss, the lowest first, of equals the newer."""
        losses = {}
        for step in self._manager.all_steps():
            try:
                losses[step] = (self._manager.metrics(step) or {}).get(VALIDATION)
            except (ValueError, OSError) as error:
                raise Damaged(f"{self.path / str(step)}: its metrics cannot be read ({_reason(error)})") from None
        return sorted((step for step in losses if losses[step] is not None), key=lambda step: (losses[step], -step))

    def save(self, state: TrainState, meta: Meta, validation_loss: float | None = None) -> None:
        """Saves in the background; does nothing if this step is saved already.

        Raises `UserError` if this checkpoint, or the one before it, cannot be written or be read back.
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
        self._unread = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype), state), step

    def _settle(self) -> None:
        """Waits for the checkpoint that is being written, reads it back, and only then removes older ones."""
        with self._saving():
            self._manager.wait_until_finished()
        if self._unread is None:
            return
        (like, step), self._unread = self._unread, None
        try:
            with jax.transfer_guard("allow"):
                self.restore(step, like)
        except UserError as error:
            older = [other for other in self._manager.all_steps() if other < step]
            way_on = f"from step {max(older)}" if older else "from the beginning"
            raise UserError(
                f"{error}, though it was written a moment ago: look at that disk. Running the same command again with "
                f"--skip-damaged goes on {way_on}"
            ) from None
        steps = sorted(self._manager.all_steps())
        for old in set(steps[: -self._keep]) - set(self._by_loss()[: self._keep_best]):
            self._manager.delete(old)

    def meta(self, step: int) -> Meta:
        """What stands beside the numbers; `Damaged` if it cannot be read."""
        try:
            return Meta.from_json(self._raw_meta(step))
        except (ValueError, OSError, KeyError, TypeError) as error:
            raise Damaged(f"{self.path / str(step)}: damaged (no meta: {_reason(error)})") from None

    def _raw_meta(self, step: int) -> dict:
        return self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]

    def restore_ema(self, step: int, like: Any) -> tuple[Any, str]:
        """The averaged parameters, shaped as `like`, and their digest; `UserError` if damaged."""
        return self._restore(step, "ema", like)

    def restore(self, step: int, like: TrainState) -> TrainState:
        """A whole state, shaped as `like`; `Damaged` if it is not what was saved."""
        ema, _ = self._restore(step, "ema", like.ema)
        training, _ = self._restore(step, "training", {field: getattr(like, field) for field in TRAINING})
        return TrainState(ema=ema, **training)

    def resume(self, like: TrainState, skip_damaged: bool) -> TrainState | None:
        """The newest state, None if there is none.

        A damaged one raises `UserError`; or it is set aside, and the one before it taken, if `skip_damaged`.
        """
        while (step := self.latest()) is not None:
            try:
                return self.restore(step, like)
            except Damaged as error:
                older = [other for other in self._manager.all_steps() if other < step]
                way_on = f"from step {max(older)}" if older else "from the beginning: it is the only one"
                if not skip_damaged:
                    raise UserError(f"{error}. Add --skip-damaged to set it aside and go on {way_on}") from None
                self._set_aside(step)
                if parallel.is_main():
                    print(f"{error}; set aside, going on {way_on}")
        return None

    def _set_aside(self, step: int) -> None:
        if parallel.is_main():
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
            raise UserError(f"{self.path / str(step)}: holds a model of other sizes than this config's")
        found = digest(tree)
        if found != expected:
            raise Damaged(f"{self.path / str(step)}: damaged ({part} does not match its digest)")
        return tree, found


def _reason(error: Exception) -> str:
    """The system's own word for a full disk, wherever in the message it stands; else the first line."""
    text = str(error)
    known = ("No space left on device", "Disk quota exceeded", "File too large", "Read-only file system")
    return next((reason for reason in known if reason in text), (text.splitlines() or [type(error).__name__])[0][:200])


def checkpoint_folder(workdir: str | Path) -> Path:
    """Where a run's checkpoints lie. Raises `UserError` for a folder in which TensorStore would write elsewhere."""
    path = local_path(workdir).absolute() / "checkpoints"
    if "\\" in str(path):
        raise UserError(f"{path}: checkpoints cannot be kept below a folder with a backslash in its name; rename it")
    return path


def check_same_run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, tuple]:
    """How `config` differs from that of the run in `workdir`: {key: (then, now)}; empty if there is no run yet.

    Raises `UserError` naming the settings in which the run cannot be continued with it.
    """
    if not any(checkpoint_folder(workdir).glob("*/[0-9]*")):
        return {}
    path = workdir / "config.json"
    if not path.exists():
        raise UserError(
            f"{path}: missing, though the run has checkpoints; put it back, or choose another --config.workdir"
        )
    try:
        then = _flat(json.loads(path.read_text()))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); put it back, or choose another --config.workdir") from None
    now = _flat(json.loads(config.to_json()))
    changes = {key: (then.get(key), now.get(key)) for key in sorted(now.keys() | then.keys())}
    changes = {key: both for key, both in changes.items() if both[0] != both[1]}
    fixed = [key for key in changes if key.startswith(FIXED) and not key.endswith(HARMLESS)]
    if fixed:
        differing = "; ".join(f"{key} is {changes[key][1]!r}, there it is {changes[key][0]!r}" for key in fixed)
        raise UserError(
            f"{workdir}: holds a run made with another config: {differing}. Choose another --config.workdir"
        )
    return changes


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {k: v for key, child in tree.items() for k, v in _flat(child, f"{prefix}{key}.").items()}


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained system as a run left it: its config and features, EMA parameters and digests by stage."""

    meta: Meta
    system: System
    params: dict[str, Any]
    digests: dict[str, str]


def load(
    workdir: str | Path,
    which: str = "newest",
    stages: Sequence[str] = STAGES,
    overrides: Mapping[str, str] | None = None,
) -> Trained:
    """The EMA weights of a run's stages; `UserError` if a stage is missing or damaged, or a setting does not fit.

    `which` of `CHECKPOINTS`: "best" is of lowest validation loss. `overrides` of the run's config: `{"a.b": "value"}`;
    a value that does not fit is refused before the weights are read.
    """
    meta, system, params, digests = None, None, {}, {}
    for name in stages:
        if not any(checkpoint_folder(workdir).glob(f"{name}/[0-9]*")):
            raise UserError(
                f"{workdir}: no checkpoint of stage {name!r}; train it with "
                f"`python -m slf_jax.train --config CONFIG --config.workdir={workdir}`"
            )
        with Checkpoints(workdir, name) as checkpoints:
            step = checkpoints.best() if which == "best" else checkpoints.latest()
            if step is None:
                raise UserError(f"{workdir}: no checkpoint of stage {name!r} has a validation loss; take the newest")
            if system is None:
                meta = checkpoints.meta(step)
                override(meta.config, overrides or {})
                check_sample(meta.config)
                system = build(meta.config, make_layout(meta.schema), meta.statistics)
            like = jax.eval_shape(system.stages[name].init, jax.random.key(0))
            try:
                params[name], digests[name] = checkpoints.restore_ema(step, like)
            except Damaged as error:
                raise UserError(f"{error}. Train on with --skip-damaged from the checkpoint before it") from None
    return Trained(meta, system, params, digests)
