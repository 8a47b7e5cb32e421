"""Execute notebooks: NAME.py in, NAME.ipynb with its outputs out.

    python notebooks/execute.py [NAME ...]

Without names, all of them. Cells are numbered and nothing is timed, so that a notebook
that has not changed gives the same file, but for its pictures and numbers.
"""

import sys
from pathlib import Path

import jupytext
from nbclient import NotebookClient

HERE = Path(__file__).parent


def main(names: list[str]) -> None:
    """Execute the notebooks of these names, one after the other."""
    files = [HERE / f"{name}.py" for name in names] or sorted(HERE.glob("*.py"))
    for file in files:
        if file.name == Path(__file__).name:
            continue
        notebook = jupytext.read(file)
        for number, cell in enumerate(notebook.cells):
            cell.id = f"cell-{number}"
        NotebookClient(
            notebook, kernel_name="python3", record_timing=False, coalesce_streams=True
        ).execute()
        jupytext.write(notebook, file.with_suffix(".ipynb"))
        print(file.with_suffix(".ipynb"))


if __name__ == "__main__":
    main(sys.argv[1:])
