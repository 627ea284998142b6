"""A base with an update added to its weights, as a folder that loads like the base's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from polymoe.files import json_bytes, write_bytes, write_safetensors
from polymoe.interop.lora import Lora
from polymoe.models.loading import find_base
from polymoe.models.sentence import read_sentence_settings
from polymoe.models.weights import SINGLE, read_weights

# Weights in all formats (ours takes their place), cards and what tools leave behind.
_LEFT = ["*.safetensors*", "*.bin", "*.pt", "*.pth", "*.h5", "*.onnx", "*.msgpack", "*.ot", "*.gguf"]
_LEFT += ["onnx", "openvino", "README.md", ".*", "__pycache__"]


def write_merged(lora: Lora, folder: Path, base_name: Any) -> None:
    """Fill an existing, empty folder with the files of a base and its weights with ``lora`` added, all floats
    as float32: in 16 bits an update would be rounded, often to nothing.

    Needs memory for the whole of the weights. ValueError where the weights of a module are not found.
    """
    source = find_base(base_name)
    if source.is_file():
        raise ValueError(f"base: expected a folder of Hugging Face files to merge into, got {source}")
    transformer = read_sentence_settings(source).transformer
    if not transformer.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"{source / 'modules.json'}: expected paths in this folder, got {transformer}")
    inside = transformer.resolve().relative_to(source.resolve())
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns(*_LEFT), dirs_exist_ok=True)
    weights = read_weights(source / inside)
    state: dict[str, np.ndarray] = {name: _plain(array) for name, array in weights.items()}
    for module, pair in lora.pairs.items():
        name = _find(f"{module}.weight", state)
        if state[name].shape != pair.shape:
            raise ValueError(f"{module}: expected an update of shape {state[name].shape}, got {pair.shape}")
        state[name] = (state[name] + pair.update()).astype(np.float32)
        if pair.bias is not None:
            bias = _find(f"{module}.bias", state)
            state[bias] = (state[bias] + pair.bias).astype(np.float32)
    write_safetensors(folder / inside / SINGLE, state, {"format": "pt"})
    path = folder / inside / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    write_bytes(
        path, json_bytes(config | {key: "float32" for key in ("dtype", "torch_dtype") if key in config})
    )


def _plain(array: np.ndarray) -> np.ndarray:
    """Integers as they are; other floats, bfloat16 too, as float32."""
    return array if array.dtype.kind in "iub" else array.astype(np.float32)


def _find(name: str, state: dict[str, np.ndarray]) -> str:
    """The name in the file, which may have the name of a larger model before it ("bert.")."""
    found = [key for key in state if key == name or key.endswith(f".{name}")]
    if len(found) != 1:
        raise ValueError(
            f"{name}: expected one tensor of this name in the base, got {', '.join(found) or 'none'}"
        )
    return found[0]
