"""The examples, and how a test runs one: as a program of its own, or as Jupyter runs a notebook."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from real import minilm_folder

FOLDER = Path(__file__).parents[1] / "examples"
EXAMPLES = sorted([*FOLDER.glob("*.py"), *FOLDER.glob("*.ipynb")])


def needs_torch(example: Path) -> bool:
    """Whether only the tests of parity can run it."""
    return "import torch" in example.read_text(encoding="utf-8")


def run_example(example: Path, folder: Path) -> None:
    """Run it in an empty folder; it must succeed and print something. Skips without the weights it needs."""
    text = example.read_text(encoding="utf-8")
    if "load_base" in text or "minilm" in text:
        minilm_folder()
    command = [str(example)] + [str(folder / "out")] * ("sys.argv" in text)
    if example.suffix == ".ipynb":
        command = [str(Path(__file__).with_name("run_notebook.py")), str(example), str(folder / example.name)]
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=folder, timeout=1200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
