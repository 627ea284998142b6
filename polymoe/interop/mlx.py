"""LoRA folders of mlx-lm, written and read with NumPy alone.

    adapter_config.json    fine_tune_type "lora", num_layers, lora_parameters: rank, scale, dropout, keys
    adapters.safetensors   NAME.lora_a (D, r), NAME.lora_b (r, O);  y = x W^T + scale (x lora_a) lora_b

One rank and one scale hold for all layers there: where ours differ, ranks are filled up with zeros and lora_b
takes the rest of the scale. ``keys`` are the names after the number of a layer; num_layers -1 is all of them.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from polymoe.files import PathLike, json_bytes, read_json, read_safetensors, safetensors_bytes, write_files
from polymoe.interop.lora import Lora, commonest, make_pair, pair_up

CONFIG, WEIGHTS = "adapter_config.json", "adapters.safetensors"


def write_mlx(lora: Lora, folder: PathLike) -> None:
    """Write a folder."""
    lora.without_bias("mlx-lm's LoRA has no biases")
    r = max(pair.r for pair in lora.pairs.values())
    scale = commonest(pair.scale for pair in lora.pairs.values())
    tensors = {}
    for name, pair in lora.pairs.items():
        pair = pair.scaled(scale).padded(r)
        tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"] = pair.lora_A.T, pair.lora_B
    keys = sorted({re.sub(r"^.*?\.\d+\.", "", name) for name in lora.pairs})
    config = {
        "fine_tune_type": "lora",
        "model": lora.base.get("name"),
        "num_layers": -1,
        "lora_parameters": {"rank": r, "scale": scale, "dropout": 0.0, "keys": keys},
    }
    write_files(folder, {WEIGHTS: safetensors_bytes(tensors), CONFIG: json_bytes(config)})


def read_mlx(folder: PathLike) -> Lora:
    """The LoRA in a folder. FileNotFoundError for a missing file; ValueError that names the file for a broken
    one, for another kind of fine-tuning and for tensors that are no pairs."""
    path = Path(folder) / CONFIG
    config = read_json(path)
    kind = config.get("fine_tune_type", "lora")
    if kind != "lora":
        raise ValueError(
            f"{path}: fine_tune_type: expected 'lora' (no pair says what the others do), got {kind!r}"
        )
    try:
        scale = float(config["lora_parameters"]["scale"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: lora_parameters: expected a scale, got {error!r}") from error
    if not math.isfinite(scale):
        raise ValueError(f"{path}: lora_parameters: expected a finite scale, got {scale}")
    weights = Path(folder) / WEIGHTS
    pairs = pair_up(read_safetensors(weights), "lora_a", "lora_b", weights)
    model = config.get("model")
    return Lora(
        {name: make_pair(name, a.T, b, scale, weights) for name, (a, b) in pairs.items()},
        {"name": model} if isinstance(model, str) else {},
    )
