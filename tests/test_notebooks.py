"""The notebooks run, and show what their scripts say."""

import json
import os
import subprocess
import sys

import jupytext
import pytest

from tests.conftest import ROOT

FOLDER = ROOT / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))

each_notebook = pytest.mark.parametrize("name", NAMES)


def read(name):
    return json.loads((FOLDER / f"{name}.ipynb").read_text())


def outputs(name):
    return [out for cell in read(name)["cells"] for out in cell.get("outputs", ())]


def test_every_script_has_its_notebook_and_every_notebook_its_script():
    assert len(NAMES) == 5
    scripts = {path.stem for path in FOLDER.glob("*.py")} - {"execute"}
    assert scripts == set(NAMES)


@each_notebook
def test_script_and_notebook_have_the_same_cells(name):
    script = jupytext.read(FOLDER / f"{name}.py").cells
    cells = read(name)["cells"]
    assert [(c.cell_type, c.source) for c in script] == [
        (c["cell_type"], "".join(c["source"])) for c in cells
    ]


@each_notebook
def test_it_was_executed_from_top_to_bottom(name):
    counts = [c["execution_count"] for c in read(name)["cells"] if "outputs" in c]
    assert counts == list(range(1, len(counts) + 1))
    assert all(out["output_type"] != "error" for out in outputs(name))


@each_notebook
def test_it_shows_pictures_and_is_small(name):
    kinds = {kind for out in outputs(name) for kind in out.get("data", ())}
    assert "image/jpeg" in kinds
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 400_000


@pytest.mark.slow
@each_notebook
def test_it_runs(name, tmp_path):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, FOLDER / f"{name}.py"],
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
