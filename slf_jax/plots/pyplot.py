"""matplotlib, imported when the first figure is drawn."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from slf_common.files import write_atomically


def save_figure(figure: Any, path: Path) -> None:
    """Writes a matplotlib figure as PNG, atomically."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    import_pyplot().close(figure)
    write_atomically(path, file.getvalue())


def import_pyplot() -> Any:
    """`matplotlib.pyplot` with a backend that needs no display."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
