"""Runs a notebook as Jupyter does, in a kernel of its own, and prints what it shows:
``python notebook.py IN.ipynb OUT.ipynb``.
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

source, target = map(Path, sys.argv[1:])
notebook = nbformat.read(source, as_version=4)
NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(target.parent)}}).execute()
nbformat.write(notebook, target)
for cell in notebook.cells:
    for output in cell.get("outputs", []):
        print(output.get("text") or output["data"]["text/plain"])
