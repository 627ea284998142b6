"""Every example runs as it stands (those with torch among the tests of parity); notebooks keep no outputs."""

import json

import pytest
from example import EXAMPLES, FOLDER, needs_torch, run_example

NOTEBOOKS = [path for path in EXAMPLES if path.suffix == ".ipynb"]


def test_there_are_examples():
    assert len(EXAMPLES) >= 6 and len(NOTEBOOKS) >= 3


@pytest.mark.parametrize(
    "example", [path for path in EXAMPLES if not needs_torch(path)], ids=lambda path: path.name
)
def test_example_runs(example, tmp_path):
    run_example(example, tmp_path)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_keeps_no_outputs(notebook):
    content = json.loads(notebook.read_text(encoding="utf-8"))
    for cell in content["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None and not cell["metadata"]
    assert content["metadata"]["kernelspec"]["name"] == "python3" and len(content["metadata"]) == 2
    assert content["nbformat"] == 4


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_example_says_what_it_needs(example):
    assert "pip install" in example.read_text(encoding="utf-8")[:1200], FOLDER
