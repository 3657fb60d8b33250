"""The 256x768 feature matrix: which rows belong to which constituent, and how records fill them.

Rows (paper, Table 1): 29 speaker embeddings, 190 classical audio features, language, age, gender, ethnicity, and 33
of padding. Missing constituents are masked, never silently zero. `assemble` and `drop` run inside `jit`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from slf_common import cli
from slf_common.errors import UserError
from slf_common.files import check_writable_file, local_path
from slf_jax.streams import stream
from tfrecords.schema import (
    CONTINUOUS,
    EMBEDDING,
    FACE_EMBEDDING,
    MATRIX_ROWS,
    MATRIX_WIDTH,
    Schema,
    matrix_constituents,
)

LIMIT = 10.0  # standardised values are clipped to +-LIMIT
MAX_AGE = 100.0  # years; age is min-max scaled from [0, MAX_AGE]
Array = jax.Array | np.ndarray


@dataclasses.dataclass(frozen=True)
class Block:
    """The rows `start .. start+rows` of the matrix and the `width` columns that one constituent fills."""

    name: str
    start: int
    rows: int
    width: int
    kind: str

    @property
    def stop(self) -> int:
        """The row after the last one."""
        return self.start + self.rows


@dataclasses.dataclass(frozen=True)
class Layout:
    """The constituents of the matrix in row order."""

    blocks: tuple[Block, ...]

    def __getitem__(self, name: str) -> Block:
        return next(block for block in self.blocks if block.name == name)

    @property
    def names(self) -> tuple[str, ...]:
        """The constituents' names in row order."""
        return tuple(block.name for block in self.blocks)

    def to_json(self) -> list[dict]:
        """The blocks as JSON objects."""
        return [dataclasses.asdict(block) for block in self.blocks]


def make_layout(schema: Schema) -> Layout:
    """Assigns rows to all constituents in the order of `matrix_constituents`. Raises `UserError` if they do not fit."""
    parts = matrix_constituents(schema)
    starts = np.cumsum([0, *(part.rows for part in parts)]).tolist()
    return Layout(
        tuple(
            Block(part.name, start, part.rows, part.width, part.kind)
            for part, start in zip(parts, starts[:-1], strict=True)
        )
    )


def rows_of(names: Sequence[str], layout: Layout) -> np.ndarray:
    """Indices of the rows of these constituents."""
    return np.concatenate([np.zeros(0, int), *(np.arange(layout[name].start, layout[name].stop) for name in names)])


def check_inputs(names: Sequence[str], layout: Layout) -> None:
    """Raises `UserError` for a name that is not a constituent of the layout."""
    for name in names:
        if name not in layout.names:
            raise UserError(f"unknown constituent {name!r}; this dataset's are: {', '.join(layout.names)}")


def check_same_features(
    names: Sequence[str], trained: Schema, statistics: Mapping, given: Schema, given_statistics: Mapping | None,
    where: str, alternative: str,
) -> None:  # fmt: skip
    """Raises `UserError` if a dataset's features are not those that a system was trained with.

    For each of the constituents `names` that training had, rows, width, kind and weights must be equal, and mean and
    standard deviation similar (if the dataset has statistics).

    Args:
      trained, statistics: schema and statistics of the training data.
      given, given_statistics: those of the dataset; None: it has no training split.
      where: the dataset's name in messages.
      alternative: what the user can do instead of extracting features again.
    """
    available, known = {part.name: part for part in given.constituents}, given_statistics or {}
    for part in (part for part in trained.constituents if part.name in names):
        if part.name not in available:
            raise UserError(
                f"{where}: has no {part.name!r}, which this system was trained with; extract it, or {alternative}"
            )
        other = available[part.name]
        for field in ("rows", "width", "kind", "weights"):
            if getattr(part, field) != getattr(other, field):
                raise UserError(
                    f"{where}: {part.name!r} has {field} {getattr(other, field) or 'unknown'}, this system was trained "
                    f"with {getattr(part, field) or 'unknown'}; extract it the same way, or {alternative}"
                )
        if part.name in statistics and part.name in known:
            _check_same_scale(part.name, statistics[part.name], known[part.name], where, alternative)
    for name in ("gender", "ethnicity", "language"):
        if name in names and trained.labels[name] != given.labels[name]:
            raise UserError(f"{where}: the classes of {name!r} are not those that this system was trained with")


def _check_same_scale(name: str, trained: Mapping, given: Mapping, where: str, alternative: str) -> None:
    """Raises `UserError` if mean or standard deviation differ by more than another set of people explains."""
    shift = np.median(np.abs(given["mean"] - trained["mean"]) / trained["std"])
    ratio = np.median(given["std"] / trained["std"])
    if not (shift < 3 and 0.2 < ratio < 5):
        raise UserError(
            f"{where}: the mean of {name!r} differs by {shift:.1f} standard deviations from the training data and its "
            f"standard deviation by a factor of {ratio:.2g}; extract it the same way, or {alternative}"
        )


def assemble(
    clips: Mapping[str, Array], layout: Layout, statistics: Mapping[str, Mapping[str, Array]]
) -> tuple[jax.Array, jax.Array]:
    """Assembles constituents into the feature matrix.

    Args:
      clips: raw constituents [B, rows, width], age [B] in years, labels [B]; missing ones are masked.
      layout: the rows of each.
      statistics: mean and std [width] of each continuous constituent over the training split.

    Returns:
      matrix [B, 256, 768] float32 and row mask [B, 256] (True where a row is known).
    """
    count = next(iter(clips.values())).shape[0]  # not len(), which symbolic shapes of jax.export do not have
    rows, known = [], []
    for block in layout.blocks:
        value, mask = _fill(clips, block, statistics, count)
        rows.append(jnp.pad(value, ((0, 0), (0, 0), (0, MATRIX_WIDTH - block.width))))
        known.append(mask)
    padding = MATRIX_ROWS - layout.blocks[-1].stop
    matrix = jnp.pad(jnp.concatenate(rows, 1), ((0, 0), (0, padding), (0, 0)))
    return matrix, jnp.pad(jnp.concatenate(known, 1), ((0, 0), (0, padding)))


def _fill(clips: Mapping, block: Block, statistics: Mapping, count: int) -> tuple[jax.Array, jax.Array]:
    """One block's normalised values [B, rows, width] and row mask [B, rows]."""
    if block.name not in clips:
        return jnp.zeros((count, block.rows, block.width)), jnp.zeros((count, block.rows), bool)
    value = jnp.asarray(clips[block.name])
    if block.name == "age":
        value = value[:, None, None] / MAX_AGE
    elif value.ndim == 1:
        value = jnp.where(value[:, None] < 0, jnp.nan, jax.nn.one_hot(value, block.width))[:, None]
    value = value.astype(jnp.float32)
    mask = jnp.isfinite(value).all(-1)
    value = jnp.where(mask[..., None], value, 0.0)
    if block.kind == EMBEDDING:
        value = unit_length(value) * np.sqrt(block.width)
    elif block.kind == CONTINUOUS:
        value = (value - statistics[block.name]["mean"]) / statistics[block.name]["std"]
    return jnp.where(mask[..., None], jnp.clip(value, -LIMIT, LIMIT), 0.0), mask


def face_identity(clips: Mapping[str, Array], statistics: Mapping[str, Mapping[str, Array]]) -> jax.Array:
    """Embeddings of the clips' faces [B, E] relative to the mean training face, at unit length; NaN where unknown.

    All faces share a large part of their embedding: only what remains without it distinguishes people.
    """
    vectors = jnp.asarray(clips[FACE_EMBEDDING])[:, 0].astype(jnp.float32) - statistics[FACE_EMBEDDING]["mean"]
    return unit_length(vectors)


def unit_length(vectors: jax.Array) -> jax.Array:
    """Vectors [..., D] at unit length."""
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6)


def mask_constituents(clips: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Records in which the constituents `names` are unknown (NaN or -1), so that `assemble` masks them."""
    return {
        key: np.full_like(value, np.nan if value.dtype.kind == "f" else -1) if key in names else value
        for key, value in clips.items()
    }


def add_noise(keys: jax.Array, matrix: jax.Array, layout: Layout, std: float) -> jax.Array:
    """Adds noise to the embeddings in the matrix [B, 256, 768], whose values have a mean square of 1; keys [B]."""
    for block in layout.blocks:
        if block.kind == EMBEDDING:
            shape, named = (block.rows, block.width), stream(keys, block.name)
            noise = jax.vmap(lambda key, shape=shape: jax.random.normal(key, shape))(named)
            matrix = matrix.at[:, block.start : block.stop, : block.width].add(std * noise)
    return matrix


def drop(keys: jax.Array, mask: jax.Array, layout: Layout, rates: Mapping[str, float], rate_all: float) -> jax.Array:
    """Drops conditions in training: each constituent of each item at its own rate, all of an item's at `rate_all`.

    Args: keys [B], mask [B, 256], rates by constituent (missing: 0). `rate_all` trains the unconditional branch of
    guidance. Returns the new mask.
    """
    rate = np.array([rates.get(name, 0.0) for name in layout.names], np.float32)

    def kept_rows(key: jax.Array) -> jax.Array:
        each = jax.random.uniform(key, (len(layout.blocks) + 1,))
        kept = (each[:-1] >= rate) & (each[-1] >= rate_all)
        rows = jnp.repeat(kept, np.array([block.rows for block in layout.blocks]))
        return jnp.pad(rows, (0, MATRIX_ROWS - len(rows)))

    return mask & jax.vmap(kept_rows)(keys)


def main(argv: Sequence[str] | None = None) -> None:
    from slf_jax.plots import matrix as plots
    from tfrecords.reader import Clips, first_split, stack
    from tfrecords.writer import clip_statistics

    arguments = cli.parser(
        "slf_jax.features",
        "Draws the 256x768 feature matrix of one clip with its rows labelled.",
        ["python -m slf_jax.features --data data/demo/records --clip p00900/00001/00001 --split test"],
    )
    arguments.add_argument("--data", required=True, help="dataset folder")
    arguments.add_argument("--clip", help="clip id (default: the first of the split)")
    arguments.add_argument("--split", help="default: train, if there is one")
    arguments.add_argument("--out", default="features.png", type=local_path, help="picture to write")
    args = arguments.parse_args(argv)
    check_writable_file(args.out)
    clips = Clips(args.data, args.split or first_split(args.data))
    clip = clips.find(args.clip)
    layout = make_layout(clips.schema)
    matrix, mask = assemble(stack([clip]), layout, clips.statistics or clip_statistics(clips.schema, clip))
    plots.feature_matrix(np.asarray(matrix[0]), np.asarray(mask[0]), layout.to_json(), clip["clip_id"], args.out)
    print(f"{args.out}: {int(mask.sum())} of {MATRIX_ROWS} rows known in clip {clip['clip_id']}")
    if not clips.statistics:
        print("standardised with the clip's own mean and standard deviation: the dataset has no training split")


if __name__ == "__main__":
    cli.run(main)
