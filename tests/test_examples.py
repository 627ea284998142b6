"""Every example runs as it stands."""

import subprocess
import sys
from pathlib import Path

import pytest
from real import minilm_folder

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


def test_there_are_examples():
    assert len(EXAMPLES) >= 2


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_example_runs(example, tmp_path):
    if "load_base" in example.read_text():
        minilm_folder()
    arguments = [str(tmp_path / "run")] if "sys.argv" in example.read_text() else []
    done = subprocess.run(
        [sys.executable, str(example), *arguments], capture_output=True, text=True, cwd=tmp_path, timeout=1200
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
