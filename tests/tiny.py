"""What small random bases of every family are written with, for the tests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import tokenizers
from safetensors.numpy import save_file

DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


def random_state(
    shapes: Mapping[str, tuple[int, ...]], seed: int, vectors: float, matrices: float
) -> dict[str, np.ndarray]:
    """Random weights by name, those of a norm around 1; the last two say how large."""
    rng = np.random.default_rng(seed)
    state = {}
    for name, shape in shapes.items():
        scale = vectors if len(shape) == 1 else matrices / np.sqrt(shape[-1])
        one = name.lower().endswith("norm.weight")
        state[name] = (rng.normal(size=shape) * scale + one).astype(np.float32)
    return state


def write_base(
    folder: Path,
    config: dict[str, Any],
    state: dict[str, np.ndarray],
    tokenizer: tokenizers.Tokenizer,
    dtype: str = "F32",
    shards: int = 1,
) -> Path:
    """A folder as Hugging Face has them; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    write_weights(folder, state, dtype, shards)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def write_json(path: Path, value: Any) -> None:
    """A JSON file."""
    path.write_text(json.dumps(value), encoding="utf-8")


def write_weights(folder: Path, state: dict[str, np.ndarray], dtype: str = "F32", shards: int = 1) -> None:
    """model.safetensors, or shards with their index; floats are rounded to ``dtype``, integers stay."""
    state = {name: t.astype(DTYPES[dtype]) if t.dtype.kind == "f" else t for name, t in state.items()}
    if shards == 1:
        save_file(state, folder / "model.safetensors")
        return
    files = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(state)}
    for file in set(files.values()):
        save_file({name: state[name] for name in state if files[name] == file}, folder / file)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": files})
