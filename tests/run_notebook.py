"""Runs a notebook as Jupyter does, in a kernel of its own, and prints what it shows:
``python run_notebook.py IN.ipynb OUT.ipynb``.
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def run(source: Path, target: Path) -> None:
    """Run the notebook, write it with its outputs, and print them."""
    notebook = nbformat.read(source, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(target.parent)}}).execute()
    nbformat.write(notebook, target)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            print(output.get("text") or output["data"]["text/plain"])


if __name__ == "__main__":
    run(*map(Path, sys.argv[1:]))
