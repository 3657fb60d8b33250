"""The notebook docs/draw.ipynb, with the system that comes with the repository."""

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "draw.ipynb"


@pytest.mark.slow
def test_the_notebook_draws(voice, picture, monkeypatch):
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert len(cells) == 5 and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    monkeypatch.setenv("SLF_VOICE", str(voice))
    monkeypatch.setenv("SLF_THUMBNAIL", str(picture))
    names: dict = {}
    for number, cell in enumerate(cells):
        exec(compile("".join(cell["source"]), f"{NOTEBOOK.name}, code cell {number}", "exec"), names)
    assert names["faces"].shape == (1, 4, 128, 128, 3) and names["voice"].name == voice.name
    youngest, oldest = names["columns"][0], names["columns"][-1]
    assert abs(youngest[0].astype(int) - oldest[0]).max() <= 1 < abs(youngest[2].astype(int) - oldest[2]).mean()
