"""Trains the cascade, one stage after the other: `python -m slf_jax.train --config configs/base.py`.

Running the same command again resumes. The run directory holds common formats only: config.json, metrics.jsonl,
samples/*.png, tensorboard/ and Orbax checkpoints/.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from slf_common import cli
from slf_common.files import local_path
from slf_jax import distributed
from slf_jax.training.loop import train
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
    with distributed.processes(config):
        finished = train(config, skip_damaged=args.skip_damaged)
        if distributed.is_main():
            _report(finished, config.workdir, sys.argv[1:] if argv is None else argv)


def _report(finished: bool, workdir: str, argv: Sequence[str]) -> None:
    if finished:
        path = local_path(workdir)
        name = shlex.quote(str(path))
        print(f"{workdir}: trained. Previews: {path / 'samples'}; curves: tensorboard --logdir {name}, or")
        print(f"  python -m slf_jax.report --workdir {name}")
    else:
        command = [arg for arg in argv if arg != "--skip-damaged"]
        print(f"{workdir}: stopped and saved. To resume:\n  python -m slf_jax.train {shlex.join(command)}")


if __name__ == "__main__":
    cli.run(main)
