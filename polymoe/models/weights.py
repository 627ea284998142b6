"""Weights of a Hugging Face folder: `model.safetensors`, whole or in shards, as arrays that are mapped from
the files.

Nothing is read before it is used: a tensor costs memory when a model converts or packs it, one at a time. The
safetensors library checks every file (header, offsets, length); the header is then read again here because
the library alone gives NumPy no bfloat16 and no view without a copy.
"""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from polymoe.models.sentence import read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
FLOATS = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
DTYPES = FLOATS | {
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Read-only arrays by name, in the dtypes of the file (bfloat16 as ml_dtypes'), mapped: they hold no
    memory of their own.

    Raises FileNotFoundError, and ValueError that names the file when it is truncated, when its header is
    broken or its tensors overlap or leave the file, and when a tensor has a dtype that polymoe does not read.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a file, got none")
    try:
        with safe_open(path, framework="numpy"):
            pass  # opening checks the header against the length of the file
    except SafetensorError as error:
        raise ValueError(f"{path}: expected a whole safetensors file, got {error}") from error
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"{path}: expected {name} in one of {list(DTYPES)}, got {entry['dtype']}")
        offset = 8 + size + entry["data_offsets"][0]
        tensors[name] = np.ndarray(entry["shape"], dtype=DTYPES[entry["dtype"]], buffer=data, offset=offset)
    return tensors


def read_weights(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a folder, from `model.safetensors` or from the shards that
    `model.safetensors.index.json` lists.

    Raises FileNotFoundError when there are no such files (weights in pickle files are not read), ValueError
    as :func:`read_safetensors` and when the index and the shards disagree.
    """
    if (folder / SINGLE).is_file():
        return read_safetensors(folder / SINGLE)
    if not (folder / INDEX).is_file():
        pickled = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
        hint = (
            f"; {', '.join(pickled)} may hold code, save the weights with safetensors instead"
            if pickled
            else ""
        )
        raise FileNotFoundError(
            f"{folder / SINGLE}: expected weights in this file (or {INDEX}), got none{hint}"
        )
    index = folder / INDEX
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(
        isinstance(f, str) and Path(f).name == f for f in places.values()
    ):
        raise ValueError(
            f"{index}: expected weight_map from names to files of the same folder, got {places!r:.200}"
        )
    tensors: dict[str, np.ndarray] = {}
    for shard in sorted(set(places.values())):
        tensors |= {
            name: t for name, t in read_safetensors(folder / shard).items() if places.get(name) == shard
        }
    if lost := sorted(places.keys() - tensors.keys()):
        raise ValueError(f"{index}: expected these tensors in its shards, got none: {_some(lost)}")
    return tensors


def rename(
    tensors: Mapping[str, np.ndarray], renames: Iterable[tuple[str, str]], ignore: str
) -> dict[str, np.ndarray]:
    """The tensors under a model's own names: each (pattern, replacement) of ``renames`` applied in turn, then
    those whose new name matches ``ignore`` left out. ValueError when two tensors get one name.
    """
    renamed: dict[str, np.ndarray] = {}
    for old, tensor in tensors.items():
        new = old
        for pattern, replacement in renames:
            new = re.sub(pattern, replacement, new)
        if re.match(ignore, new):
            continue
        if new in renamed:
            raise ValueError(f"weights: expected one tensor for {new}, got several ({old} is one)")
        renamed[new] = tensor
    return renamed


def check_weights(state: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """ValueError that lists what is missing, what is unexpected and what has a wrong shape; TypeError for
    integers.
    """
    problems = []
    if missing := sorted(shapes.keys() - state.keys()):
        problems.append(f"missing {_some(missing)}")
    if unexpected := sorted(state.keys() - shapes.keys()):
        problems.append(f"unexpected {_some(unexpected)}")
    if problems:
        raise ValueError(
            f"weights: expected the {len(shapes)} tensors of the configuration, got {'; '.join(problems)}"
        )
    for name, shape in shapes.items():
        if state[name].shape != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {state[name].shape}")
        if state[name].dtype not in FLOATS.values():
            raise TypeError(f"{name}: expected one of {list(FLOATS)}, got dtype {state[name].dtype}")


def _some(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
