"""Samples from a trained system: scales x people x samples in one compiled program, in chunks that fit memory."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from tqdm import tqdm

from slf_common.errors import UserError
from slf_jax import distributed
from slf_jax.cascade.images import to_float, to_uint8
from slf_jax.cascade.settings import SampleSettings, sample_settings
from slf_jax.cascade.sizes import SIZES, STAGES
from slf_jax.cascade.system import AUTO, person_noise
from slf_jax.diffusion.guidance import area_average
from slf_jax.inference.trained import Trained

Groups = tuple[tuple[str, ...], ...]  # the constituents of each group of inputs with its own guidance scale
# Number of scales, names of the numbers that vary with them, and groups: each has its own programs.
Swept = tuple[int, tuple[str, ...], Groups]


class Sampler:
    """A trained system compiled for chunks of people, once for each number of scales and of rows in a chunk.

    Numbers of the settings (`cascade.settings.NUMBERS`) can be changed by a call, as the scales are, without compiling.
    A call uses the smallest compiled chunk size that holds all its rows (padded), and compiles a new one only if there
    is none: a large call after a small one runs in large chunks, a small one after a large one does not recompile.

    Args:
      settings: how to sample; default: the run's `config.sample`.
      stages: stages to run in order; the first starts from the faces' own low-resolution image.
      chunk: maximum number of rows (people x samples) at once.
      memory: GB that a chunk may use on each device; 0: most of the free memory.
    """

    def __init__(
        self, trained: Trained, *, settings: SampleSettings | None = None, stages: Sequence[str] = STAGES,
        chunk: int = 16, memory: float = 0.0,
    ) -> None:  # fmt: skip
        self.settings = settings or sample_settings(trained.meta.config)
        self._system, self._stages = trained.system, tuple(stages)
        self._mesh, self._limit = distributed.make_mesh(), chunk
        self._memory = memory * 1e9 or _free_memory()
        self._weak = trained.weak.system if trained.weak else None
        both = [{name: each.params[name] for name in stages} for each in (trained, trained.weak) if each]
        self._params = distributed.replicate(self._mesh, both)
        self._size = sum(leaf.nbytes for leaf in jax.tree.leaves(self._params))
        self._first_noise, self._jit = jax.jit(_first_noise), jax.jit(self._run, static_argnames="groups")
        # Programs also by rows in a chunk.
        self._programs: dict[Swept, dict[int, jax.stages.Compiled]] = {}
        self._fits: dict[Swept, int] = {}  # maximum rows in a chunk, if limited by memory

    def _run(
        self, params: Sequence[Mapping], clips: Mapping, people: jax.Array, draws: jax.Array, has_thumbnail: jax.Array,
        first: Mapping[str, jax.Array], seed: jax.Array, scales: jax.Array, numbers: Mapping[str, jax.Array],
        groups: Groups,
    ) -> jax.Array:  # fmt: skip
        low = area_average(to_float(clips["face"]), SIZES[self._stages[0]][0])
        noise = person_noise(seed, people, draws)
        noise = {name: dataclasses.replace(noise[name], first=first[name]) for name in self._stages}
        images = self._system.sample(
            params[0], clips, low, has_thumbnail, noise, scales, self.settings, self._stages, numbers, groups,
            (self._weak, params[1]) if self._weak else None,
        )  # fmt: skip
        return to_uint8(images)

    def __call__(
        self, clips: Mapping[str, np.ndarray], people: np.ndarray, scales: Sequence[tuple[float, ...]], seed: int, *,
        samples: int = 1, use_thumbnail: bool = True, without: Sequence[str] = (), progress: str = "",
        groups: Groups = (), numbers: Mapping[str, float | Sequence[float]] | None = None,
    ) -> np.ndarray:  # fmt: skip
        """Samples faces; returns uint8 images [S, B, samples, side, side, 3].

        Args:
          clips: records of B people.
          people: [B], each person's number (`people.person_number`), from which the noise is derived.
          scales: S pairs of guidance scales, of base and upsampler; with G groups, S tuples of G scales.
          samples: number of faces per person.
          use_thumbnail: False: the base stage starts from noise alone.
          without: inputs to mask.
          progress: label of the progress bar; "": none.
          groups: groups of inputs with their own scale, in the order in which guidance adds them; inputs in none of
            them are masked. (): all inputs are one group. Of a system with a weak one, the last is `(AUTO,)`.
          numbers: values to use for some of the settings' numbers, each one value, or one for each of the S scales.

        Raises `UserError` if a single person does not fit into memory.
        """
        count, system = len(people) * samples, self._system.without(without)
        if groups:
            if (groups[-1] == (AUTO,)) != bool(self._weak):
                raise ValueError("the last group must be (AUTO,) for a system with a weak one, and not for others")
            system = system.without([name for name in system.inputs if name not in itertools.chain(*groups)])
        system.check_scales(scales, groups)
        clips, strengths = system.mask_unused_inputs(clips), np.asarray(scales, np.float32)
        if groups:
            strengths = np.repeat(strengths[:, None], len(STAGES), 1)
        values = self._numbers(numbers or {})
        swept = tuple(name for name, value in values.items() if value.ndim)

        def arguments(indices: np.ndarray) -> tuple:
            # The last chunk is padded with its first row, so that it needs no program of its own.
            rows = np.where(indices < count, indices, indices[0])
            batch = {key: value[rows // samples] for key, value in clips.items()}
            has_thumbnail = np.full(len(rows), float(use_thumbnail), np.float32)
            each = (batch, people[rows // samples], rows % samples, has_thumbnail)
            batch, numbers, draws, has_thumbnail = distributed.split(self._mesh, each)
            rest = distributed.replicate(self._mesh, (np.int32(seed), strengths, values))
            first = self.first_noise(rest[0], numbers, draws)
            return self._params, batch, numbers, draws, has_thumbnail, first, *rest

        chunk, program = self._program((len(scales), swept, groups), count, arguments)
        # Each chunk is prepared and dispatched before the previous one's images are fetched.
        parts: list[np.ndarray] = []
        pending: jax.Array | None = None
        for start in tqdm(range(0, count, chunk), desc=progress, unit="chunk", disable=not progress):
            dispatched = program(*arguments(np.arange(start, start + chunk)))
            if pending is not None:
                parts.append(np.asarray(pending))
            pending = dispatched
        images = np.concatenate([*parts, np.asarray(pending)], 1)[:, :count]
        return images.reshape(len(scales), len(people), samples, *images.shape[2:])

    def _numbers(self, changes: Mapping[str, float | Sequence[float]]) -> dict[str, np.ndarray]:
        own = self.settings.numbers
        if unknown := [name for name in changes if name not in own]:
            raise ValueError(f"{unknown[0]!r}: the numbers that can be changed are {', '.join(own)}")
        return {name: np.asarray(value, np.float32) for name, value in {**own, **changes}.items()}

    def first_noise(
        self, seed: int | jax.Array, people: np.ndarray | jax.Array, draws: np.ndarray | jax.Array
    ) -> dict[str, jax.Array]:
        """The initial noise of each stage, [B, side, side, 3]: bitwise the same in any order, chunk and on any mesh.

        Drawn in one dispatch, on the devices that have `people` and `draws` [B]. It is a program of its own, since the
        compiler may round differently where it fuses the drawing with what follows.
        """
        noise = self._first_noise(seed, people, draws)
        return {name: noise[name] for name in self._stages}

    def _program(self, swept: Swept, rows: int, arguments: Callable) -> tuple[int, jax.stages.Compiled]:
        """The compiled program for a number of scales and of rows, and its rows: all of them, or as many as fit."""
        devices, programs = self._mesh.size, self._programs.setdefault(swept, {})
        chunk = math.ceil(min(rows, self._fits.get(swept, self._limit)) / devices) * devices
        chunk = min((compiled for compiled in programs if compiled >= chunk), default=chunk)
        while chunk not in programs:
            program, fixed, need = self._compile(chunk, arguments, swept[2])
            if need <= self._memory:
                programs[chunk] = program
            elif chunk > devices:
                fits = int(chunk / devices * (self._memory - fixed) / (need - fixed))
                chunk = self._fits[swept] = max(1, min(fits, chunk // devices - 1)) * devices
            else:
                raise UserError(
                    f"one person at {swept[0]} scales takes {need / 1e9:.2f} GB on a device, but only "
                    f"{self._memory / 1e9:.2f} GB may be used; give fewer scales at once, or raise --memory"
                )
        return chunk, programs[chunk]

    def _compile(self, chunk: int, arguments: Callable, groups: Groups) -> tuple[jax.stages.Compiled, int, int]:
        """Compiles the program for `chunk` rows; also returns its bytes on a device: independent of rows, and total."""
        program = self._jit.lower(*arguments(np.arange(chunk)), groups=groups).compile()
        use = program.memory_analysis()
        bytes_of_rows = use.temp_size_in_bytes + use.output_size_in_bytes if use else 0  # not known on all backends
        return program, self._size, self._size + bytes_of_rows


def _first_noise(seed: jax.Array, people: jax.Array, draws: jax.Array) -> dict[str, jax.Array]:
    return {name: each.first for name, each in person_noise(seed, people, draws).items()}


def _free_memory() -> float:
    """Bytes on each device that sampling may use."""
    use = jax.local_devices()[0].memory_stats()
    if use:
        return 0.9 * (use["bytes_limit"] - use["bytes_in_use"])
    return 0.5 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / jax.local_device_count()
