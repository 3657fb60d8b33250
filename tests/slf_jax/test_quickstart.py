"""The notebook docs/quickstart.ipynb, run on a tiny trained system."""

import json
from pathlib import Path

import numpy as np
import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "quickstart.ipynb"


@pytest.fixture(scope="module")
def cells():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_notebook_stores_no_outputs(cells):
    assert cells
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


@pytest.mark.slow
def test_notebook_runs_on_a_trained_system(run, cells, monkeypatch):
    pytest.importorskip("skimage")  # in the extra `evaluate`
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    monkeypatch.setenv("SLF_WORKDIR", str(run.workdir))
    names: dict = {}
    for number, cell in enumerate(cells):
        source = "".join(cell["source"])
        exec(compile(source, f"{NOTEBOOK.name}, code cell {number}", "exec"), names)
    figures = len(plt.get_fignums())
    plt.close("all")
    people = len(names["people"])
    assert names["images"].shape == (1, people, 3, 128, 128, 3) and names["images"].dtype == np.uint8
    assert names["sweep"].shape == (5, people, 1, 128, 128, 3)
    assert not np.array_equal(names["from_noise"], names["images"])
    assert not np.array_equal(names["few_steps"][0, :, 0], names["images"][0, :, 0])
    # At scale 0 voice and attributes are ignored, at scale 1 the sweep repeats the first sample.
    np.testing.assert_allclose(names["sweep"][1, :, 0], names["images"][0, :, 0], atol=1)
    assert figures == 6
