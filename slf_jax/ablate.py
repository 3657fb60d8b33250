"""The paper's ablations: `python -m slf_jax.ablate --config configs/ablations.py`.

Trains each system, sweeps it over guidance scales and scores it; also emulates the same systems by masking inputs of a
single system that was trained with any subset of them. Running the same command again resumes. Writes report.md (the
paper's tables beside ours), results.json and figures into the run directory.
"""

from __future__ import annotations

from collections.abc import Sequence

from slf_common import cli
from slf_common.files import local_path
from slf_jax.evaluation import ablation_tables
from slf_jax.evaluation.ablation import ablate
from slf_jax.evaluation.settings import RULES


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.parser(
        "slf_jax.ablate",
        "Trains, sweeps and scores the paper's eight systems; run the same command again to resume.",
        [
            "python -m slf_jax.ablate --config configs/ablations.py:demo",
            "python -m slf_jax.ablate --config configs/ablations.py --config.data.dir=data/vox2/records",
            "python -m slf_jax.ablate --config configs/ablations.py:demo --config.ablations.modes=masked",
        ],
    )
    _, config = cli.parse_with_config(parser, argv, RULES)
    report = ablate(config)
    if report is None:
        print(f"{config.workdir}: stopped and saved; run the same command again to resume")
        return
    workdir = local_path(config.workdir)
    print(f"{ablation_tables.short(report)}\n{workdir / 'report.md'}\n{workdir / 'results.json'}")


if __name__ == "__main__":
    cli.run(main)
