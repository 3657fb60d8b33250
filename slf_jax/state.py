"""What a training step carries, and its checkpoints.

A checkpoint has three parts: `ema` (the averaged parameters, all that sampling needs), `training` (the rest of
the state) and `meta` (config, the features' schema and statistics, digests). Orbax keeps no checksum of its data, so
a digest of ours is checked on restore.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.struct
import jax
import ml_collections
import numpy as np
import optax
import orbax.checkpoint as ocp

from slf_jax.cascade import STAGES, Stage, System, build
from slf_jax.features import make_layout
from tfrecords.cli import UserError
from tfrecords.schema import Schema

# Settings that decide what a checkpoint's numbers mean: a run cannot go on with others.
FIXED = ("model", "diffusion", "data.inputs", "train.batch_size", "seed")


@flax.struct.dataclass
class TrainState:
    """Everything the next step depends on, besides the config and the data."""

    step: jax.Array
    params: Any
    ema: Any
    opt_state: Any


def init_state(stage: Stage, optimizer: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """A fresh state; one jitted program."""

    def init(key: jax.Array) -> TrainState:
        params = stage.init(key)
        return TrainState(jax.numpy.zeros((), int), params, params, optimizer.init(params))

    return jax.jit(init)(key)


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
    """The checkpoints of one stage of a run. Use as a context manager: leaving it waits for what is being saved."""

    def __init__(self, workdir: str | Path, stage: str, keep: int | None = None) -> None:
        self.path = Path(workdir).absolute() / "checkpoints" / stage
        reading = keep is None
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=not reading, read_only=reading, cleanup_tmp_directories=not reading
        )
        self._manager = ocp.CheckpointManager(self.path, options=options)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exc: object) -> None:
        self._manager.close()

    def latest(self) -> int | None:
        return self._manager.latest_step()

    def save(self, state: TrainState, meta: Meta) -> None:
        """Saves in the background; does nothing if this step is saved already."""
        state = jax.device_get(state)
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        training = {"step": state.step, "params": state.params, "opt_state": state.opt_state}
        digests = {"ema": digest(state.ema), "training": digest(training)}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                ema=ocp.args.StandardSave(state.ema),
                training=ocp.args.StandardSave(training),
                meta=ocp.args.JsonSave({**meta.to_json(), "digests": digests}),
            ),
        )

    def meta(self, step: int) -> Meta:
        return Meta.from_json(self._raw_meta(step))

    def _raw_meta(self, step: int) -> dict:
        return self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]

    def restore_ema(self, step: int, like: Any) -> tuple[Any, str]:
        """The averaged parameters, shaped as `like`, and their digest; `UserError` if damaged."""
        return self._restore(step, "ema", like)

    def restore(self, step: int, like: TrainState) -> TrainState:
        """A whole state, shaped as `like`; `UserError` if damaged."""
        ema, _ = self._restore(step, "ema", like.ema)
        training = {"step": like.step, "params": like.params, "opt_state": like.opt_state}
        training, _ = self._restore(step, "training", training)
        return TrainState(training["step"], training["params"], ema, training["opt_state"])

    def _restore(self, step: int, part: str, like: Any) -> tuple[Any, str]:
        shapes = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
        try:
            args = ocp.args.Composite(**{part: ocp.args.StandardRestore(shapes)})
            tree = self._manager.restore(step, args=args)[part]
        except (ValueError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{self.path / str(step)}: cannot be read as this model ({reason})") from None
        if jax.tree.map(np.shape, tree) != jax.tree.map(np.shape, shapes):
            raise UserError(f"{self.path / str(step)}: holds a model of other sizes than this config's")
        found = digest(tree)
        if found != self._raw_meta(step)["digests"][part]:
            raise UserError(
                f"{self.path / str(step)}: damaged ({part} does not match its digest); "
                "delete this folder to go on from the checkpoint before it"
            )
        return tree, found


def check_same_run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Raises `UserError` naming the settings in which the run in `workdir` cannot be continued with `config`."""
    if not any(workdir.glob("checkpoints/*/[0-9]*")):
        return
    now, then = _flat(json.loads(config.to_json())), _flat(json.loads((workdir / "config.json").read_text()))
    differing = [
        f"{key} is {now.get(key)!r}, there it is {then.get(key)!r}"
        for key in sorted(now.keys() | then.keys())
        if key.startswith(FIXED) and now.get(key) != then.get(key)
    ]
    if differing:
        raise UserError(
            f"{workdir}: holds a run made with another config: {'; '.join(differing)}. Choose another --config.workdir"
        )


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


def load(workdir: str | Path) -> Trained:
    """The newest EMA weights of both stages of a run; `UserError` if a stage is missing."""
    meta, system, params, digests = None, None, {}, {}
    for name in STAGES:
        if not any(Path(workdir).glob(f"checkpoints/{name}/[0-9]*")):
            raise UserError(
                f"{workdir}: no checkpoint of stage {name!r}; train it with "
                f"`python -m slf_jax.train --config CONFIG --config.workdir={workdir}`"
            )
        with Checkpoints(workdir, name) as checkpoints:
            step = checkpoints.latest()
            if system is None:
                meta = checkpoints.meta(step)
                system = build(meta.config, make_layout(meta.schema), meta.statistics)
            like = jax.eval_shape(system.stages[name].init, jax.random.key(0))
            params[name], digests[name] = checkpoints.restore_ema(step, like)
    return Trained(meta, system, params, digests)
