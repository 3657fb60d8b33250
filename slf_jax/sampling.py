"""A trained system at work: scales x people x samples in one compiled program, in chunks that fit memory."""

from __future__ import annotations

import argparse
import math
import os
import re
import zlib
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from tqdm import tqdm

from slf_common import cli
from slf_common.errors import UserError
from slf_common.files import check_writable, local_path
from slf_jax import cascade, features, parallel
from slf_jax.diffusion.guidance import area_average
from slf_jax.state import CHECKPOINTS, Trained, load
from tfrecords.reader import Clips

Scale = tuple[float, float]  # of base and upsampler


def parse_scales(text: str, flag: str = "--scales") -> tuple[Scale, ...]:
    """`"0,2.5,4:1"` to pairs; one number serves both stages.

    Raises `UserError` if empty, negative, not a number, or given twice: results are filed by the scale's spelling.
    """
    try:
        # + 0.0: -0 is 0.
        scales = [tuple(float(number) + 0.0 for number in part.split(":")) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UserError(f"{flag} {text!r}: give comma-separated numbers, as in {flag} 0,1,2,4") from None
    if not scales:
        raise UserError(f"{flag} is empty; give at least one, as in {flag} 0,1,2,4")
    if any(len(scale) > 2 for scale in scales):
        raise UserError(f"{flag} {text}: a scale is one number, or BASE:UPSAMPLER as in 4:1")
    if any(not math.isfinite(number) or number < 0 for scale in scales for number in scale):
        raise UserError(f"{flag} {text}: a guidance scale is a finite number of at least 0")
    pairs = tuple((scale[0], scale[-1]) for scale in scales)
    refuse_repeated([spell(pair) for pair in pairs], f"{flag} {text}")
    return pairs


def refuse_repeated(names: Sequence[str], what: str) -> None:
    """Raises `UserError` if one of the names is given twice; `what`: the flag and its value."""
    if twice := [name for place, name in enumerate(names) if name in names[:place]]:
        raise UserError(f"{what}: {twice[0]} is given twice")


def spell(scale: Scale) -> str:
    """`2.5`, or `4:1` where the stages differ."""
    return f"{scale[0]:g}" if scale[0] == scale[1] else f"{scale[0]:g}:{scale[1]:g}"


def person_number(clip_id: str) -> int:
    """A number that a clip's noise is drawn from, whatever else is sampled with it."""
    return zlib.crc32(clip_id.encode()) & 0x7FFFFFFF


def file_name(clip_id: str) -> str:
    """A clip's id as a file name without an ending: ids are data, and may hold anything."""
    name = re.sub(r"[^\w.-]+", "_", clip_id, flags=re.ASCII).lstrip(".")
    return name if name and len(name) <= 150 else f"{name[:140]}{person_number(clip_id):08x}"


def choose_people(clips: Clips, count: int) -> list[dict]:
    """The first clip of each of the first `count` speakers."""
    first: dict[str, int] = {}
    for i, (_, speaker) in enumerate(clips.names()):
        first.setdefault(speaker, i)
        if len(first) == count:
            break
    return [clips[i] for i in first.values()]


class Sampler:
    """A trained system compiled for chunks of people, once for each number of scales and rows in a chunk.

    A call takes the smallest compiled chunk that holds all its rows, which is then filled up, and compiles only if
    there is none: a large call after a small one runs in large chunks, a small one after a large one compiles nothing.

    Args:
      stages: which run, one after the other; the first starts from the faces' own low-resolution image.
      chunk: most rows (people x samples) at once. memory: GB on each device that a chunk may take; 0: most of what
        is free.
    """

    def __init__(
        self, trained: Trained, *, stages: Sequence[str] = cascade.STAGES, chunk: int = 16, memory: float = 0.0
    ) -> None:
        self.settings = cascade.sample_settings(trained.meta.config)
        self._system, self._stages = trained.system, tuple(stages)
        self._mesh, self._limit = parallel.make_mesh(), chunk
        self._memory = memory * 1e9 or _free_memory()
        self._params = parallel.replicate(self._mesh, {name: trained.params[name] for name in stages})
        self._size = sum(leaf.nbytes for leaf in jax.tree.leaves(self._params))
        self._first = jax.jit(_first_noise)
        self._jit = jax.jit(self._run)
        self._programs: dict[int, dict[int, jax.stages.Compiled]] = {}  # by scales, by rows in a chunk
        self._fits: dict[int, int] = {}  # by scales, the most rows in a chunk, where memory limits them

    def _run(
        self, params: Mapping, clips: Mapping, people: jax.Array, draws: jax.Array, given: jax.Array,
        first: Mapping[str, jax.Array], seed: jax.Array, scales: jax.Array,
    ) -> jax.Array:  # fmt: skip
        low = area_average(cascade.to_float(clips["face"]), cascade.SIZES[self._stages[0]][0])
        noise = cascade.person_noise(seed, people, draws)
        noise = {name: noise[name].replace(first=first[name]) for name in self._stages}
        images = self._system.sample(params, clips, low, given, noise, scales, self.settings, self._stages)
        return cascade.to_uint8(images)

    def __call__(
        self, clips: Mapping[str, np.ndarray], people: np.ndarray, scales: Sequence[Scale], seed: int, *,
        samples: int = 1, guided: bool = True, without: Sequence[str] = (), progress: str = "",
    ) -> np.ndarray:  # fmt: skip
        """uint8 images [S, B, samples, side, side, 3].

        `clips` are records of B people, `people` their numbers. Not `guided`: the base stage starts from noise alone.
        `without`: inputs that are masked.
        """
        count, clips = len(people) * samples, self._system.without(without).seen(clips)

        def arguments(places: np.ndarray) -> tuple:
            # The last chunk is filled up with its first row, so that nothing compiles twice.
            rows = np.where(places < count, places, places[0])
            batch = {key: value[rows // samples] for key, value in clips.items()}
            given = np.full(len(rows), float(guided), np.float32)
            who = people[rows // samples], rows % samples
            split = parallel.split(self._mesh, (batch, *who, given, self.first_noise(seed, *who)))
            rest = (np.int32(seed), np.asarray(scales, np.float32))
            return self._params, *split, *parallel.replicate(self._mesh, rest)

        chunk, program = self._program(len(scales), count, arguments)
        # The next chunk is on its way to the device before the last one's images are fetched.
        parts, pending = [], None
        for first in tqdm(range(0, count, chunk), desc=progress, unit="chunk", disable=not progress):
            images = program(*arguments(np.arange(first, first + chunk)))
            if pending is not None:
                parts.append(np.asarray(pending))
            pending = images
        images = np.concatenate([*parts, np.asarray(pending)], 1)[:, :count]
        return images.reshape(len(scales), len(people), samples, *images.shape[2:])

    def first_noise(self, seed: int, people: np.ndarray, draws: np.ndarray) -> dict[str, np.ndarray]:
        """What each stage starts from, [B, side, side, 3]: the same bit by bit in any order, chunk and on any mesh.

        One person at a time, by one small program: in a larger one the compiler may round otherwise.
        """
        each = [self._first(np.int32(seed), person, draw) for person, draw in zip(people, draws, strict=True)]
        return {name: np.stack([first[name] for first in each]) for name in self._stages}

    def _program(self, scales: int, rows: int, arguments: Callable) -> tuple[int, jax.stages.Compiled]:
        """The compiled program for so many scales, and the rows it takes: as many as there are, or as fit."""
        devices, programs = self._mesh.size, self._programs.setdefault(scales, {})
        chunk = math.ceil(min(rows, self._fits.get(scales, self._limit)) / devices) * devices
        chunk = min((compiled for compiled in programs if compiled >= chunk), default=chunk)
        while chunk not in programs:
            program, fixed, need = self._compile(chunk, arguments)
            if need <= self._memory:
                programs[chunk] = program
            elif chunk > devices:
                fits = int(chunk / devices * (self._memory - fixed) / (need - fixed))
                chunk = self._fits[scales] = max(1, min(fits, chunk // devices - 1)) * devices
            else:
                raise UserError(
                    f"one person at {scales} scales takes {need / 1e9:.2f} GB on a device, {self._memory / 1e9:.2f} GB "
                    "may be used; give fewer scales at once, or more with --memory"
                )
        return chunk, programs[chunk]

    def _compile(self, chunk: int, arguments: Callable) -> tuple[jax.stages.Compiled, int, int]:
        """The program for so many rows, and the bytes it takes on a device: whatever their number, and in all."""
        program = self._jit.lower(*arguments(np.arange(chunk))).compile()
        use = program.memory_analysis()
        return program, self._size, self._size + use.temp_size_in_bytes + use.output_size_in_bytes


def _first_noise(seed: jax.Array, person: jax.Array, draw: jax.Array) -> dict[str, jax.Array]:
    noise = cascade.person_noise(seed, person[None], draw[None])
    return {name: each.first[0] for name, each in noise.items()}


def _free_memory() -> float:
    """Bytes on each device that sampling may take."""
    use = jax.local_devices()[0].memory_stats()
    if use:
        return 0.9 * (use["bytes_limit"] - use["bytes_in_use"])
    return 0.5 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / jax.local_device_count()


def add_arguments(arguments: argparse.ArgumentParser) -> None:
    """The flags that all commands which sample share."""
    arguments.add_argument("--workdir", required=True, type=local_path, help="run directory of slf_jax.train")
    arguments.add_argument(
        "--checkpoint", default="newest", choices=CHECKPOINTS,
        help="newest (default), or best: of lowest validation loss among those kept",
    )  # fmt: skip
    arguments.add_argument("--data", default="", help="dataset folder (default: the one it was trained on)")
    arguments.add_argument("--split", default="test", help="default: test")
    arguments.add_argument("--seed", type=int, default=0, help="default: 0")
    arguments.add_argument("--samples", type=int, default=1, help="faces of each person (default: 1)")
    arguments.add_argument("--without", default="", metavar="NAMES", help="inputs to mask, as in mel,language")
    arguments.add_argument("--chunk", type=int, default=16, help="most faces at once at each scale (default: 16)")
    arguments.add_argument(
        "--memory", type=float, default=0.0, metavar="GB",
        help="that a chunk may take on each device; smaller chunks are made where it would take more (default: most of "
        "what is free)",
    )  # fmt: skip
    arguments.add_argument_group(
        "overrides", "--config.sample.KEY=VALUE changes how to sample, e.g. --config.sample.steps=32"
    )


def parse(
    arguments: argparse.ArgumentParser, argv: Sequence[str] | None, folder: str, *files: str
) -> tuple[argparse.Namespace, Trained]:
    """Parses flags and overrides, and loads the system; `--out` is WORKDIR/folder unless it is given.

    Raises `UserError`, also where `files` cannot be written there.
    """
    arguments.add_argument("--out", type=local_path, help=f"folder to write to (default: WORKDIR/{folder})")
    args, overrides = cli.parse_overrides(arguments, argv)
    args.out = args.out or args.workdir / folder
    for name in ("samples", "chunk"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: give at least 1")
    if not 0 <= args.memory < math.inf:
        raise UserError(f"--memory {args.memory}: give gigabytes, or leave it out")
    if not 0 <= args.seed < 2**31:
        raise UserError(f"--seed {args.seed}: give a number from 0 to {2**31 - 1}")
    for key in overrides:
        if not key.startswith("sample."):
            raise UserError(f"--config.{key}: of a trained system only --config.sample.* can be changed")
    check_writable(args.out, *files)
    trained = load(args.workdir, args.checkpoint, overrides=overrides)
    parallel.use_compilation_cache(trained.meta.config.compilation_cache)
    return args, trained


def open_clips(trained: Trained, args: argparse.Namespace, without: Sequence[str]) -> Clips:
    """The split to sample from; `UserError` if its features are not those that the system was trained with."""
    directory = args.data or trained.meta.config.data.dir
    clips, meta = Clips(directory, args.split), trained.meta
    inputs = trained.system.without(without).inputs
    trained_with, given = (meta.schema, meta.statistics), (clips.schema, clips.statistics)
    features.check_same_features(inputs, *trained_with, *given, directory, "leave it out with --without NAME")
    return clips


def names(text: str, flag: str = "--without") -> tuple[str, ...]:
    """`"mel, age"` to names. Raises `UserError` if one is given twice."""
    found = tuple(name.strip() for name in text.split(",") if name.strip())
    refuse_repeated(found, f"{flag} {text}")
    return found
