"""Trains the cascade, one stage after the other: `python -m slf_jax.train --config configs/base.py`.

Running the same command again resumes. The run directory holds common formats only: config.json, metrics.jsonl,
samples/*.png, tensorboard/ and Orbax checkpoints/.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from slf_common import cli
from slf_jax import distributed
from slf_jax.training.loop import train_command
from slf_jax.training.settings import RULES, check_config


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.parser(
        "slf_jax.train",
        "Trains both stages of the cascade; run the same command again to resume.",
        [
            "python -m slf_jax.train --config configs/demo.py",
            "python -m slf_jax.train --config configs/base.py --config.data.dir=data/vox2/records",
            "python -m slf_jax.train --config configs/base.py --config.stage=base --config.parallel=pmap",
            "python -m slf_jax.train --config configs/base.py --config.workdir=runs/fine --init-from runs/base",
            "srun python -m slf_jax.train --config configs/base.py --config.distributed=true    (docs/scaling.md)",
        ],
    )
    parser.add_argument("--init-from", metavar="RUN", default="", help="start from the EMA weights of another run")
    parser.add_argument(
        "--skip-damaged", action="store_true", help="set a damaged checkpoint aside and resume from the one before it"
    )
    args, config = cli.parse_with_config(parser, argv, RULES)
    check_config(config)
    config.init_from = args.init_from or config.init_from
    arguments = sys.argv[1:] if argv is None else argv
    with distributed.processes(config):
        train_command(config, "slf_jax.train", arguments, skip_damaged=args.skip_damaged)


if __name__ == "__main__":
    cli.run(main)
