"""The notebook: it runs from top to bottom and prints what it shows."""

import io
import json
import pathlib
import re

import numpy as np
import pytest

NOTEBOOK = pathlib.Path(__file__).parent.parent / "docs/first_steps.ipynb"
CELLS = [
    cell
    for cell in json.loads(NOTEBOOK.read_text())["cells"]
    if cell["cell_type"] == "code"
]
NUMBER = r"\d+(?:\.\d+)?"


@pytest.fixture(scope="module")
def cells(commands, tmp_path_factory):
    """What each cell prints and draws."""
    import matplotlib.pyplot as plt

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("notebook"))
        patch.setattr(plt, "show", lambda: None)
        patch.setenv("MPLBACKEND", "agg")
        # As one program, with marks between the cells.
        said = io.StringIO()
        marks = ["".join(cell["source"]) + "\nprint('\\f', end='')" for cell in CELLS]
        patch.setattr("sys.stdout", said)
        commands.run_text("\n".join(marks))
        patch.undo()
        figures = plt.get_fignums()
        plt.close("all")
    return said.getvalue().split("\f")[:-1], figures


def shown(cell):
    return "".join(
        "".join(output["text"]) for output in cell["outputs"] if "text" in output
    )


def test_every_cell_prints_what_it_shows(cells):
    printed, _ = cells
    assert len(printed) == len(CELLS)
    for cell, said in zip(CELLS, printed, strict=True):
        assert re.sub(NUMBER, "#", said) == re.sub(NUMBER, "#", shown(cell))
        found, told = (
            np.array(re.findall(NUMBER, text), float) for text in (said, shown(cell))
        )
        # Percent, where machines round otherwise: a row of 360 is 0.3.
        assert np.abs(found - told).max(initial=0) <= 3


def test_the_figure_is_drawn_once_and_kept(cells):
    _, figures = cells
    assert len(figures) == 1
    kept = [output for cell in CELLS for output in cell["outputs"] if "data" in output]
    assert len(kept) == 1


def test_adapting_pays_for_new_users(cells):
    (curve,) = (said for said in cells[0] if "after 0 to 5 steps" in said)
    for line in curve.splitlines():
        before, *_, after = map(float, re.findall(rf"({NUMBER}) %", line))
        assert after > before + 20


def test_cells_were_run_in_order():
    assert [cell["execution_count"] for cell in CELLS] == [*range(1, len(CELLS) + 1)]
