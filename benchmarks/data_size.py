"""What more training people would bring, measured by the identity head: it ranks faces by voice, without drawing any.

    python benchmarks/data_size.py subset --data data/people/records --share 0.25 --out data/people/quarter
    python -m slf_jax.train --config configs/people.py --config.data.dir=data/people/quarter \\
      --config.workdir=runs/quarter --config.stage=base
    python benchmarks/data_size.py plot --data data/people/records --runs runs/quarter,runs/people --out runs/data_size

A subset has some of the training speakers, chosen by a hash of their ids (so that smaller subsets lie within larger
ones), and all others. `plot` writes data_size.json and data_size.png. All runs should be trained for the same number of
steps.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np

from slf_common import cli
from slf_common.errors import UserError
from slf_common.files import check_writable, local_path, write_atomically
from slf_jax.evaluation import identity_head, protocol
from slf_jax.inference import arguments
from slf_jax.inference.trained import load
from slf_jax.plots.pyplot import import_pyplot, save_figure
from tfrecords import writer
from tfrecords.reader import Clips

MEASURES = {"r@10": "R@10 (%)", "auc": "verification AUC (%)", "cosine": "cosine to the own face"}


def write_subset(data: str, share: float, out: Path) -> None:
    """Writes a dataset with a share of the training speakers, one shard for each split."""
    if not 0 < share <= 1:
        raise UserError(f"--share {share}: give a number above 0, at most 1")
    check_writable(out)
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: not empty; give another --out")
    for split in writer.SPLITS:
        clips = Clips(data, split)
        speakers = sorted({name for _, name in clips.names()}, key=lambda name: hashlib.sha256(name.encode()).digest())
        kept = set(speakers[: round(share * len(speakers))] if split == "train" else speakers)
        chosen = [i for i, (_, name) in enumerate(clips.names()) if name in kept]
        writer.write_shard(out / writer.shard_name(split, 0, 1), clips.schema, (clips[i] for i in chosen))
        print(f"{split}: {len(chosen)} clips of {len(kept)} speakers")
    writer.finalise(out, clips.schema, dict.fromkeys(writer.SPLITS, 1), clips.provenance)


def measure(run: str, data: str, split: str, without: tuple[str, ...]) -> dict:
    """The clips that a run was trained on, and the measures of its identity head."""
    trained = load(local_path(run), stages=("base",))
    people = protocol.choose(Clips(data, split), same_clip=True)
    found = identity_head.evaluate_head(trained, people, {"voice": without})
    if found is None:
        raise UserError(f"{run}: has no identity head, or {data} no embeddings of faces")
    row = found["voice"]
    auc, cosine = row["identity"]["verification"]["auc"], row["identity"]["cosine_own"]
    values = {"r@10": _percent(row["r@10"], "rate"), "auc": _percent(auc, "rate")}
    values["cosine"] = [cosine[key] for key in ("mean", "low", "high")]
    return {"run": run, "clips": len(Clips(trained.meta.config.data.dir, "train")), "people": len(people), **values}


def _percent(row: dict, name: str) -> list[float]:
    return [100 * row[key] for key in (name, "low", "high")]


def plot(rows: list[dict], title: str, path: Path) -> None:
    """Each measure against the number of training clips, with 95 % intervals."""
    plt = import_pyplot()
    figure, panels = plt.subplots(1, len(MEASURES), figsize=(12, 3.6), layout="constrained")
    clips = [row["clips"] for row in rows]
    for axes, (name, label) in zip(panels, MEASURES.items(), strict=True):
        middle, low, high = np.array([row[name] for row in rows]).T
        axes.errorbar(clips, middle, [middle - low, high - middle], marker="o", capsize=3)
        axes.set(xlabel="training clips", ylabel=label, xscale="log")
        axes.set_xticks(clips, [str(count) for count in clips])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    subset, shown = commands.add_parser("subset"), commands.add_parser("plot")
    for each in (subset, shown):
        each.add_argument("--data", required=True, help="dataset folder")
        each.add_argument("--out", required=True, type=local_path, help="folder to write to")
    subset.add_argument("--share", required=True, type=float, help="share of the training speakers")
    shown.add_argument("--runs", required=True, help="comma-separated run directories")
    shown.add_argument("--split", default="test", help="split to measure on (default: test)")
    shown.add_argument("--without", default="age,gender", help="inputs to mask (default: age,gender)")
    args = parser.parse_args()
    if args.command == "subset":
        write_subset(args.data, args.share, args.out)
        return
    without = arguments.parse_names(args.without)
    rows = [measure(run, args.data, args.split, without) for run in arguments.parse_names(args.runs, "--runs")]
    rows.sort(key=lambda row: row["clips"])
    for row in rows:
        texts = [
            f"{label} {row[name][0]:.3g} [{row[name][1]:.3g}, {row[name][2]:.3g}]" for name, label in MEASURES.items()
        ]
        print(f"{row['run']}: {row['clips']} clips; " + "; ".join(texts))
    title = f"{rows[0]['people']} people of the {args.split} split, ranked by voice"
    write_atomically(args.out / "data_size.json", json.dumps(rows, indent=2).encode())
    plot(rows, title, args.out / "data_size.png")
    print(args.out / "data_size.json", args.out / "data_size.png", sep="\n")


if __name__ == "__main__":
    cli.run(main)
