"""The sampler of a trained system as a serialised program of `jax.export`, which runs without this package."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import jax
import jax.export
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from slf_common.errors import UserError
from slf_jax.cascade.images import to_uint8
from slf_jax.cascade.settings import sample_settings
from slf_jax.cascade.sizes import SIZES, STAGES
from slf_jax.cascade.system import System, build_system, person_noise
from slf_jax.inference.trained import Trained
from tfrecords.schema import LABELS

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def parse_platforms(text: str) -> tuple[str, ...]:
    """Parses names of platforms with commas between. Raises `UserError`."""
    names = tuple(text.split(","))
    for name in names:
        if name not in PLATFORMS or names.count(name) > 1:
            raise UserError(f"--platforms {text}: must be some of {', '.join(PLATFORMS)}, with commas between")
    return names


def check_flatbuffers() -> None:
    """Raises `UserError` if the package that `jax.export` writes files with is not installed."""
    try:
        import flatbuffers  # noqa: F401
    except ImportError:
        raise UserError('--platforms needs flatbuffers: pip install -e ".[export]"') from None


def serialize(trained: Trained, dtype: str, platforms: Sequence[str]) -> bytes:
    """The sampler with the settings of the run's config, as `sample(weights, clips, thumbnail, scales, people, seed)`.

    Args:
      dtype: of the weights; the networks compute in it.
      platforms: some of `PLATFORMS`, on each of which the program runs.

    The program takes any number of people B and of scales S:
      weights: the arrays of the exported system's safetensors file by name.
      clips: raw features of each input: [B, rows, width] float16, "age" [B] float32, other labels [B] int32; unknown
        ones are NaN or -1.
      thumbnail: [B, 8, 8, 3] float32 in [-1, 1]; NaN for a person without one.
      scales: [S, 2] float32, guidance scales of base and upsampler.
      people: [B] int32, numbers from which each person's noise is derived, with `seed`, int32.

    Returns faces [S, B, 128, 128, 3], uint8.
    """
    config = copy.deepcopy(trained.meta.config)
    config.model.dtype = dtype
    for name in STAGES:
        # JAX does not serialise cuDNN's attention: its form may change between versions.
        config.model[name].attention = "xla"
    system = build_system(config, trained.system.layout, trained.system.statistics)
    settings = sample_settings(config)

    def sample(
        weights: Mapping, clips: Mapping, thumbnail: jax.Array, scales: jax.Array, people: jax.Array, seed: jax.Array
    ) -> jax.Array:
        params = unflatten_dict({name: x.astype(jnp.float32) for name, x in weights.items()}, sep="/")
        known = jnp.isfinite(thumbnail).all((1, 2, 3))
        low = jnp.where(known[:, None, None, None], thumbnail, 0)
        noise = person_noise(seed, people)
        return to_uint8(system.sample(params, clips, low, known.astype(jnp.float32), noise, scales, settings))

    exported = jax.export.export(jax.jit(sample), platforms=platforms)(*_shapes(trained, system, dtype))
    return bytes(exported.serialize())


def _shapes(trained: Trained, system: System, dtype: str) -> tuple:
    """The shapes of the program's arguments; numbers of people and of scales are symbols."""
    people, scales = jax.export.symbolic_shape("people, scales")
    shape = jax.ShapeDtypeStruct
    stages = {name: trained.params[name] for name in STAGES}
    weights = {name: shape(x.shape, dtype) for name, x in flatten_dict(stages, sep="/").items()}
    clips = {}
    for block in (system.layout[name] for name in system.inputs):
        if block.name in LABELS or block.name == "age":
            clips[block.name] = shape((people,), jnp.float32 if block.name == "age" else jnp.int32)
        else:
            clips[block.name] = shape((people, block.rows, block.width), jnp.float16)
    side = SIZES[STAGES[0]][0]
    numbers = shape((people,), jnp.int32), shape((), jnp.int32)
    return weights, clips, shape((people, side, side, 3), jnp.float32), shape((scales, 2), jnp.float32), *numbers
