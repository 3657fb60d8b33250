"""Faces of people: `python -m slf_jax.sample --workdir runs/demo`.

Writes one PNG for each face, named by its clip, which says in its text chunks that it is synthetic and how it came
about (clip, seed, scale, sampler, NFE, checkpoints), and a contact sheet.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from slf_common import cli
from slf_common.errors import UserError
from slf_common.files import local_path
from slf_common.pictures import PictureError, read_picture
from slf_jax import cascade, figures, sampling
from slf_jax.diffusion.guidance import area_average
from slf_jax.sampling import Sampler
from slf_jax.state import Trained
from tfrecords.reader import Clips, stack
from tfrecords.schema import FACE_SIZE

SHEET_ROWS = 32
SYNTHETIC = "yes: made by a diffusion model; not a photograph, and not an identification of anybody"


def read_guide(path: Path) -> np.ndarray:
    """A picture's centre square as a face [128, 128, 3] uint8 with the same 8x8 averages. Raises `UserError`."""
    try:
        picture = read_picture(path)
    except OSError as error:
        raise UserError(f"--guide {path}: cannot be read ({error.strerror})") from None
    except PictureError as error:
        raise UserError(f"--guide {path}: {error}") from None
    return np.asarray(ImageOps.fit(Image.fromarray(picture), (FACE_SIZE, FACE_SIZE), Image.Resampling.BOX))


def find_clips(clips: Clips, ids: Sequence[str], people: int) -> list[dict]:
    """The clips of these ids, or the first of each of so many speakers. Raises `UserError`."""
    if not ids:
        return sampling.choose_people(clips, people)
    wanted, found = set(ids), {}
    for i, (clip_id, _) in enumerate(clips.names()):
        if clip_id in wanted:
            found[clip_id] = i
        if len(found) == len(wanted):
            break
    for wanted in ids:
        if wanted not in found:
            hint = "; give several ids with spaces between them, --clips ID ID" if "," in wanted else ""
            raise UserError(f"{clips.directory}: no clip {wanted!r} among the {len(clips)} of this split{hint}")
    return [clips[found[wanted]] for wanted in ids]


def write_faces(images: np.ndarray, names: Sequence[str], out: Path, notes: Sequence[Mapping]) -> list[Path]:
    """Writes images [B, samples, H, W, 3] with each person's notes, to which the sample's number is added."""
    count, paths = images.shape[1], []
    for (person, draw), _ in tqdm(list(np.ndenumerate(images[:, :, 0, 0, 0])), desc="writing", unit="face"):
        path = out / (f"{names[person]}_{draw:02d}.png" if count > 1 else f"{names[person]}.png")
        figures.save_png(Image.fromarray(images[person, draw]), path, {**notes[person], "sample": draw})
        paths.append(path)
    return paths


def unique_names(ids: Sequence[str]) -> list[str]:
    """File names of clips, told apart by a number where two ids read the same."""
    names = [sampling.file_name(each) for each in ids]
    same = [name for name in names if names.count(name) > 1]
    return [f"{n}_{sampling.person_number(i):08x}" if n in same else n for n, i in zip(names, ids, strict=True)]


def contact_sheet(
    images: np.ndarray, faces: np.ndarray, real: np.ndarray, ids: Sequence[str], side: int, guided: bool, path: Path
) -> None:
    """What each face started from, its samples, and the real face beside them, for up to `SHEET_ROWS` people."""
    columns = [f"sample {i}" for i in range(images.shape[1])]
    parts = [figures.enlarge(images, FACE_SIZE), real[:, None]]
    if guided:
        low = np.asarray(cascade.to_uint8(area_average(cascade.to_float(jnp.asarray(faces)), side)))
        parts.insert(0, figures.enlarge(low, FACE_SIZE)[:, None])
        columns.insert(0, f"{side}x{side}")
    page = np.concatenate(parts, 1)[:SHEET_ROWS]
    figures.image_grid(page, path, [*columns, "real"], [each[:40] for each in ids[:SHEET_ROWS]])


def describe(trained: Trained, sampler: Sampler, stages: Sequence[str], scale: sampling.Scale, seed: int) -> dict:
    """What is noted in each PNG, whoever it shows."""
    return {
        "synthetic": SYNTHETIC,
        "seed": seed,
        "scale": sampling.spell(scale),
        "sampler": sampler.settings.sampler,
        "NFE": f"{sampler.settings.evaluations} a stage",
        "stages": ", ".join(stages),
        "checkpoints": ", ".join(f"{name} {trained.digests[name]}" for name in stages),
        "Software": f"slf-jax {importlib.metadata.version('slf-jax')}",
    }


def main(argv: Sequence[str] | None = None) -> None:
    arguments = cli.parser(
        "slf_jax.sample",
        "Draws faces from a trained system: of a thumbnail and a voice, of a voice alone, or of a thumbnail alone.",
        [
            "python -m slf_jax.sample --workdir runs/demo                         # thumbnail, voice and attributes",
            "python -m slf_jax.sample --workdir runs/demo --no-guide --samples 4  # voice and attributes, from noise",
            "python -m slf_jax.sample --workdir runs/demo --scale 0               # the thumbnail alone",
            "python -m slf_jax.sample --workdir runs/demo --without age,gender,ethnicity",
            "python -m slf_jax.sample --workdir runs/demo --clips p00900/00001/00001 --guide thumbnail.png",
            "python -m slf_jax.sample --workdir runs/demo --stages upsampler      # 32x32 to 128x128",
        ],
    )
    sampling.add_arguments(arguments)
    arguments.add_argument(
        "--clips", nargs="+", action="extend", default=[], metavar="ID", help="clip ids; the flag may be repeated"
    )
    arguments.add_argument("--people", type=int, default=8, help="without --clips: of how many speakers (default: 8)")
    arguments.add_argument(
        "--scale", default="1", help="guidance scale, or BASE:UPSAMPLER; 0: thumbnail alone (default: 1)"
    )
    arguments.add_argument(
        "--guide", type=local_path, metavar="FILE", help="picture whose thumbnail all get, for the clip's own"
    )
    arguments.add_argument("--no-guide", action="store_true", help="no thumbnail: from noise")
    arguments.add_argument(
        "--stages", default="base,upsampler", help="base (to 32x32), upsampler (from 32x32), or both"
    )
    args, trained = sampling.parse(arguments, argv, "faces", "contact_sheet.png")
    stages, without = sampling.names(args.stages, "--stages"), sampling.names(args.without)
    scales = sampling.parse_scales(args.scale, "--scale")
    if stages not in (cascade.STAGES, *((name,) for name in cascade.STAGES)):
        raise UserError(f"--stages {args.stages}: give one of base,upsampler or base or upsampler")
    if len(scales) != 1:
        raise UserError(f"--scale {args.scale}: give one; several at once are slf_jax.sweep's")
    if args.no_guide and (args.guide or stages[0] != "base"):
        raise UserError("--no-guide starts the base stage from noise: leave out --guide and --stages upsampler")
    sampling.refuse_repeated(args.clips, "--clips")
    if args.people < 1:
        raise UserError(f"--people {args.people}: give at least 1")
    clips = sampling.open_clips(trained, args, without)
    chosen = find_clips(clips, args.clips, args.people)
    batch, ids = stack(chosen), [clip["clip_id"] for clip in chosen]
    real = batch["face"]
    if args.guide:
        batch["face"] = np.broadcast_to(read_guide(args.guide), real.shape)
    sampler = Sampler(trained, stages=stages, chunk=args.chunk, memory=args.memory)
    numbers = np.array([sampling.person_number(each) for each in ids])
    (images,) = sampler(
        batch, numbers, scales, args.seed, samples=args.samples, guided=not args.no_guide, without=without,
        progress="sampling",
    )  # fmt: skip
    guide = "none" if args.no_guide else args.guide.name if args.guide else "of the clip's face"
    common = {**describe(trained, sampler, stages, scales[0], args.seed), "guide": guide, "without": ", ".join(without)}
    paths = write_faces(images, unique_names(ids), args.out, [{"clip": each, **common} for each in ids])
    side = cascade.SIZES[stages[0]][0]
    contact_sheet(images, batch["face"], real, ids, side, not args.no_guide, args.out / "contact_sheet.png")
    print(f"{len(paths)} faces in {args.out}, all of them on {args.out / 'contact_sheet.png'}")


if __name__ == "__main__":
    cli.run(main)
