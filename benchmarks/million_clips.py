"""What a dataset of a million clips costs: `python benchmarks/million_clips.py gpu-machine=24 v5e-chip=1.2`.

Computes hours, bytes and money on one machine with eight GPUs and on sixteen TPU v5e chips from the figures below, each
of which says where it comes from. Give your own in place of any of them, above all the prices.
"""

from __future__ import annotations

import argparse
import dataclasses

from slf_common import cli
from slf_common.errors import UserError

STEPS, BATCH = 400_000, {"base": 256, "upsampler": 128}  # of `configs/base.py`


@dataclasses.dataclass(frozen=True)
class Figure:
    """A number with its default, unit and origin (measured, compiled or assumed)."""

    value: float
    unit: str
    origin: str


FIGURES = {
    "clips": Figure(1e6, "clips", "chosen"),
    "extract": Figure(4.2, "core-seconds per clip", "measured: all extractors and attributes, docs/results.md"),
    "detect": Figure(2.0, "core-seconds per clip", "measured: RetinaFace on one frame, docs/results.md"),
    "record": Figure(230e3, "bytes per record", "measured: docs/results.md"),
    "index": Figure(68, "bytes of index per record", "measured: benchmarks/flat_cost.py"),
    "read": Figure(0.78e-3, "core-seconds per record", "measured: the demo's records of 201 kB, in the page cache"),
    "h100-base": Figure(5704, "images/s of one GPU", "measured: one H100, docs/scaling.md"),
    "h100-upsampler": Figure(2950, "images/s of one GPU", "measured: one H100, docs/scaling.md"),
    "v5e-base": Figure(64 / 0.0741, "images/s of one chip", "compiled: 60.7 GB for 64 images at 819 GB/s, not run"),
    "v5e-upsampler": Figure(
        32 / 0.0440, "images/s of one chip", "compiled: 36.0 GB for 32 images at 819 GB/s, not run"
    ),
    "gpus": Figure(8, "GPUs", "chosen; assumed: eight are eight times as fast as one"),
    "chips": Figure(16, "v5e chips", "chosen; assumed: as for GPUs"),
    "gpu-cores": Figure(192, "CPU cores beside the GPUs", "assumed"),
    "v5e-cores": Figure(224, "CPU cores beside the chips", "assumed"),
    "gpu-machine": Figure(24.0, "$ per hour of the GPU machine", "assumed"),
    "v5e-chip": Figure(1.2, "$ per hour of a chip", "assumed"),
    "storage": Figure(0.02, "$ per GB and month", "assumed"),
}


def costs(value: dict[str, float]) -> list[tuple[str, str, float, float]]:
    """Rows: what, formula, and its value on the GPU machine and on the TPU slice. Hours, $ or GB, as `what` says."""
    extraction = value["clips"] * (value["extract"] + value["detect"]) / 3600  # core-hours
    sides = []
    for kind, cores, count, price in (
        ("h100", value["gpu-cores"], value["gpus"], value["gpu-machine"]),
        ("v5e", value["v5e-cores"], value["chips"], value["v5e-chip"] * value["chips"]),
    ):
        training = sum(STEPS * batch / (value[f"{kind}-{name}"] * count) for name, batch in BATCH.items()) / 3600
        rate = value[f"{kind}-base"] * count
        reading = (rate * value["read"], rate * value["record"] / 1e9)
        sides.append((extraction / cores, extraction / cores * price, training, training * price, *reading))
    texts = (
        ("extraction, hours", "clips x (extract + detect) / cores / 3600"),
        ("extraction, $", "hours x price"),
        ("training of both stages, hours", f"{STEPS:,} x batch / (images/s x devices) / 3600"),
        ("training of both stages, $", "hours x price"),
        ("reading for the base stage, cores", "images/s x devices x read"),
        ("reading for the base stage, GB/s", "images/s x devices x record"),
    )
    rows = [(*text, *both) for text, *both in zip(texts, *sides, strict=True)]
    disk, memory = value["clips"] * value["record"] / 1e9, value["clips"] * value["index"] / 1e9
    rows += [("records, GB", "clips x record", disk, disk), ("index in memory, GB", "clips x index", memory, memory)]
    return [*rows, ("records, $ per month", "GB x storage", disk * value["storage"], disk * value["storage"])]


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    arguments.add_argument("figures", nargs="*", metavar="NAME=VALUE", help=f"names: {', '.join(FIGURES)}")
    value = {name: figure.value for name, figure in FIGURES.items()}
    for text in arguments.parse_args().figures:
        name, _, number = text.partition("=")
        if name not in FIGURES or not number.replace(".", "", 1).isdecimal():
            raise UserError(f"{text}: give NAME=VALUE, a number for one of {', '.join(FIGURES)}")
        value[name] = float(number)
    for name, figure in FIGURES.items():
        origin = figure.origin if value[name] == figure.value else "given"
        print(f"{name:16}{value[name]:>12.6g}  {figure.unit} ({origin})")
    print(f"\n{'':38}{'GPU machine':>14}{'v5e slice':>12}  computed as")
    for what, formula, gpu, tpu in costs(value):
        print(f"{what:38}{gpu:>14,.2f}{tpu:>12,.2f}  {formula}")


if __name__ == "__main__":
    cli.run(main)
