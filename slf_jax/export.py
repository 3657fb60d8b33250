"""Writes a trained system to a folder that can be shared: `python -m slf_jax.export --workdir runs/demo --out model/`.

The folder holds the EMA weights as safetensors, config, features and digests as JSON, a model card (README.md) and, if
the run's dataset is at hand, a picture of examples. Every `--workdir` that reads a trained system takes it. With
`--platforms`, it also holds the sampler as a program that runs without this package.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from slf_common import cli
from slf_common.errors import UserError
from slf_common.files import check_writable, local_path, write_atomically
from slf_jax import distributed
from slf_jax.cascade.images import downscale
from slf_jax.evaluation import tables
from slf_jax.inference import arguments, exported, hub, model_card, program
from slf_jax.inference.people import choose_people, person_number
from slf_jax.inference.sampler import Sampler
from slf_jax.inference.scales import format_scale, parse_scales
from slf_jax.inference.trained import CHECKPOINTS, Trained, load
from slf_jax.plots import grids
from tfrecords.reader import Clips, stack

EXAMPLE_PEOPLE, EXAMPLE_SCALES = 2, "0,1,2,4"


def export(trained: Trained, args: argparse.Namespace) -> str:
    """Writes the folder `args.out`; returns a line that says what is in it. Raises `UserError`."""
    exported.write(args.out, trained.meta, trained.params, trained.steps, args.dtype)
    path = args.out / exported.PROGRAM
    path.unlink(missing_ok=True)  # an earlier export's
    if args.platforms:
        write_atomically(path, program.serialize(trained, args.dtype, args.platforms))
    drawn = load(args.out)  # what a user of the export gets; checks the digests
    clips = _open_data(trained, args.data)
    if clips:
        _draw_examples(drawn, clips, args.out / exported.EXAMPLES)
    evaluation, sweep = (
        model_card.read_results(Path(args.workdir) / name, trained.digests)
        for name in ("evaluation/results.json", "sweep/metrics.json")
    )
    text = tables.short(evaluation) if evaluation else ""
    card = model_card.render(drawn, args.dtype, args.about, args.license, clips is not None, sweep, text)
    write_atomically(args.out / exported.CARD, card.encode())
    size = sum(path.stat().st_size for path in args.out.iterdir()) / 1e6
    parts = [f"{args.dtype} weights, config, model card", *["examples"] * bool(clips)]
    if args.platforms:
        parts.append(f"sampler for {', '.join(args.platforms)}")
    return f"{args.out}: {', '.join(parts)}; {size:.1f} MB"


def _open_data(trained: Trained, data: str) -> Clips | None:
    """The test or validation people of the run's dataset, if it is at hand."""
    directory = data or trained.meta.config.data.dir
    for split in ("test", "validation"):
        try:
            return Clips(directory, split) if directory else None
        except UserError:
            if data and split == "validation":
                raise
    return None


def _draw_examples(trained: Trained, clips: Clips, path: Path) -> None:
    """Draws generated faces beside their thumbnails; real faces must not be shared with the system."""
    people, scales = choose_people(clips, EXAMPLE_PEOPLE), parse_scales(EXAMPLE_SCALES)
    batch = stack(people)
    numbers = np.array([person_number(clip["clip_id"]) for clip in people])
    images = Sampler(trained)(batch, numbers, scales, 0, progress="examples")[:, :, 0]
    columns = {f"scale {format_scale(scale)}": faces for scale, faces in zip(scales, images, strict=True)}
    page = grids.draw_grid({"8x8 thumbnail": downscale(batch["face"]), **columns})
    write_atomically(path, grids.encode_jpeg(page))


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.parser(
        "slf_jax.export",
        "Writes a trained system to a folder that can be shared, and optionally uploads it to the Hugging Face hub.",
        [
            "python -m slf_jax.export --workdir runs/mine --out model",
            "python -m slf_jax.export --workdir runs/mine --out model --dtype bfloat16 --checkpoint best",
            "python -m slf_jax.export --workdir runs/mine --out model --platforms cpu,cuda,tpu    # the sampler, too",
            "python -m slf_jax.export --workdir runs/mine --out model --push owner/name    # token in HF_TOKEN",
            "python -m slf_jax.sample --workdir model --data data/mine",
        ],
    )
    parser.add_argument("--workdir", required=True, type=arguments.parse_source, help=arguments.SOURCE_HELP)
    parser.add_argument("--out", required=True, type=local_path, help="new folder, or one of an earlier export")
    parser.add_argument("--dtype", choices=exported.DTYPES, default="float32", help="of the weights (default: float32)")
    parser.add_argument("--checkpoint", choices=CHECKPOINTS, default="newest", help="default: newest")
    parser.add_argument("--about", default="", metavar="TEXT", help="for the card: whose recordings it was trained on")
    parser.add_argument("--license", default="other", metavar="ID", help="for the card (default: other)")
    parser.add_argument("--data", default="", help="dataset for the examples (default: the one it was trained on)")
    parser.add_argument(
        "--platforms", default=(), type=program.parse_platforms, metavar="NAMES",
        help=f"also write the sampler as a program of jax.export for {', '.join(program.PLATFORMS)} (extra: export)",
    )  # fmt: skip
    parser.add_argument("--push", default="", metavar="OWNER/NAME", help="upload to the hub (extra: hub)")
    parser.add_argument("--private", action="store_true", help="with --push: make a new repository private")
    args = parser.parse_args(argv)
    if args.push:
        hub.check_push(args.push)
    if args.platforms:
        program.check_flatbuffers()
    check_writable(args.out)
    exported.check_target(args.out)
    trained = load(args.workdir, args.checkpoint)
    distributed.use_compilation_cache(trained.meta.config.compilation_cache)
    print(export(trained, args))
    if args.push:
        print(hub.push(args.out, args.push, args.private))


if __name__ == "__main__":
    cli.run(main)
