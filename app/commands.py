"""The console commands of setup.py: `slf-train` is `python -m slf_jax.train`, and so on."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from slf_common import cli


def _command(module: str) -> Callable[[], None]:
    return lambda: cli.run(lambda: importlib.import_module(module).main())


extract = _command("extract.run")
train = _command("slf_jax.train")
distill = _command("slf_jax.distill")
sample = _command("slf_jax.sample")
sweep = _command("slf_jax.sweep")
evaluate = _command("slf_jax.evaluate")
export = _command("slf_jax.export")
face = _command("app.draw")
serve = _command("app.serve")
