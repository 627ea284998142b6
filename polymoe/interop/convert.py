"""LoRAs from one format to another; no base weights are needed.

peft   a folder of PEFT's: LORA, or one task of POLY
mlx    a folder of mlx-lm's
gguf   llama.cpp's adapter.gguf; needs the base's config.json for the names of its modules
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polymoe import functional
from polymoe.adapters.config import AdapterConfig
from polymoe.adapters.targets import ALL_LINEAR, is_target
from polymoe.files import PathLike, read_json
from polymoe.interop import peft
from polymoe.interop.export import base_config, put_folder
from polymoe.interop.gguf import FILE, read_gguf, write_gguf
from polymoe.interop.lora import Lora, Pair, distance, make_pair, norm, pair_up
from polymoe.interop.mlx import read_mlx, write_mlx
from polymoe.interop.peft_folder import CONFIG, WEIGHTS, PeftFolder, open_folder
from polymoe.models.loading import MODEL_PACKAGES

FORMATS = ("peft", "mlx", "gguf")


@dataclass(frozen=True)
class Converted:
    """``error``: the largest difference of a layer's update, as it was read again, from what it was, both as
    Frobenius norms: rounding where a scale had to move into lora_B, else 0."""

    output: Path
    source: str
    to: str
    layers: int
    rank: int
    error: float


def convert(
    source: PathLike,
    output: PathLike,
    to: str,
    *,
    base: PathLike | None = None,
    task: str | int | None = None,
    overwrite: bool = False,
) -> Converted:
    """Read a LoRA in whatever format it is and write it in another, into a new folder.

    ``base``: name of the base, of which only config.json is read, for GGUF; what the source names by default.
    ``task``: which one of a POLY folder. Raises ValueError for what cannot be read or has no place there,
    FileExistsError for an output that is there, RuntimeError when what was written is not what was read.
    """
    if to not in FORMATS:
        raise ValueError(f"to: expected one of {', '.join(FORMATS)}, got {to!r}")
    kind = format_of(source)
    config = None if base is None else base_config(base)
    lora = read_lora(source, config=config, task=task)
    if to == "gguf" and config is None:
        name = lora.base.get("name")
        if name is None or not (
            name in MODEL_PACKAGES or Path(name).is_dir()
        ):  # nothing is downloaded unasked
            raise ValueError(f"base: expected the folder of the base, {source} says {name!r}, got None")
        config = base_config(name)
    error = 0.0

    def write(folder: Path) -> None:
        nonlocal error
        write_lora(lora, folder, to, config)
        again = read_lora(folder, config=config)
        for name, pair in lora.pairs.items():
            size = norm(pair)
            off = distance(again.pairs[name], pair)
            error = max(error, off / size if size else off)
        if again.pairs.keys() != lora.pairs.keys() or not error <= 1e-6:
            raise RuntimeError(f"{output}: expected the updates that were read, got {error:.2g} off")

    put_folder(Path(output), write, overwrite)
    rank = max(pair.r for pair in lora.pairs.values())
    return Converted(Path(output), kind, to, len(lora.pairs), rank, error)


def format_of(source: PathLike) -> str:
    """ "peft", "mlx" or "gguf". FileNotFoundError where there is no adapter (folders in it that hold one are
    named)."""
    path = Path(source)
    if path.suffix == ".gguf" or (path / FILE).is_file():
        return "gguf"
    if (path / CONFIG).is_file():
        settings = read_json(path / CONFIG)
        return "mlx" if isinstance(settings, dict) and "lora_parameters" in settings else "peft"
    inside = sorted(found.parent.name for found in path.glob(f"*/{CONFIG}")) if path.is_dir() else []
    hint = f"; adapters lie in {', '.join(inside)}" if inside else ""
    raise FileNotFoundError(f"{path}: expected an adapter (PEFT, mlx-lm or GGUF), got none{hint}")


def read_lora(
    source: PathLike, *, config: Mapping[str, Any] | None = None, task: str | int | None = None
) -> Lora:
    """The LoRA in a folder or GGUF file, in any of the formats; errors as :func:`convert`."""
    kind = format_of(source)
    if kind == "peft":
        return _read_peft(Path(source), task)
    if task is not None:
        raise ValueError(f"task: expected None ({source} is one LoRA), got {task!r}")
    return read_mlx(source) if kind == "mlx" else read_gguf(source, config)


def write_lora(lora: Lora, folder: Path, to: str, config: Mapping[str, Any] | None = None) -> None:
    """Write into an existing folder; ``config`` as :func:`~polymoe.interop.gguf.write_gguf` needs it."""
    if to == "peft":
        lora.save(folder)
    elif to == "mlx":
        write_mlx(lora, folder)
    else:
        write_gguf(lora, folder, {} if config is None else config)


def _read_peft(folder: Path, task: str | int | None) -> Lora:
    opened = open_folder(folder)
    path = folder / WEIGHTS
    tensors = {key.removeprefix(peft.PREFIX): array for key, array in opened.tensors().items()}
    if opened.kind == "LORA":
        if task is not None:
            raise ValueError(f"task: expected None ({folder} is one LoRA), got {task!r}")
        pairs = _lora_pairs(tensors, opened.config, path)
    elif opened.kind == "POLY":
        pairs = _poly_pairs(tensors, opened, task, path)
    else:
        raise ValueError(
            f"{folder}: expected peft_type LORA or POLY, got a {opened.config.method!r} adapter: mixtures "
            "that PEFT does not have are read with their base, by polymoe export"
        )
    return Lora(pairs, opened.base, opened.settings.get("task_type"))


def _lora_pairs(tensors: dict[str, np.ndarray], config: AdapterConfig, path: Path) -> dict[str, Pair]:
    pairs = {
        name: make_pair(name, A, B.T, config.scale(name), path)
        for name, (A, B) in pair_up(tensors, "lora_A.weight", "lora_B.weight", path).items()
    }
    targets = config.target_modules
    known = targets is not None and not (isinstance(targets, str) and targets.lower() == ALL_LINEAR)
    for name, pair in pairs.items():
        if known and not is_target(config, name):
            raise ValueError(f"{path}: expected weights of target_modules {targets!r}, got {name}")
        if pair.r != config.rank(name):
            raise ValueError(f"{path}: {name}: expected rank {config.rank(name)}, got {pair.r}")
    return pairs


def _poly_pairs(
    tensors: dict[str, np.ndarray], opened: PeftFolder, task: str | int | None, path: Path
) -> dict[str, Pair]:
    """The mixture of one task: blocks of A and B by the normalised sigmoids of its row of logits."""
    if task is None:
        raise ValueError(f"task: expected one of {list(opened.tasks.names)}, got None")
    task_id = opened.tasks.check(task, 1)
    parts = ("poly_lora_A", "poly_lora_B", "poly_router.module_logits")
    names = dict.fromkeys(
        k.removesuffix(f".{part}") for k in tensors for part in parts if k.endswith(f".{part}")
    )
    expected = {f"{name}.{part}" for name in names for part in parts}
    if expected != tensors.keys():
        wrong = ", ".join(sorted(expected ^ tensors.keys()))
        raise ValueError(f"{path}: expected {', '.join(parts)} for each layer, got more or less: {wrong}")
    pairs = {}
    for name in names:
        A, B, logits = (tensors[f"{name}.{part}"].astype(np.float64) for part in parts)
        Q, S, _, r = A.shape
        weights = functional.task_router(logits.reshape(-1, Q, S), task_id, None)[0][0]
        mixed_A = np.einsum("qs,qsdr->rqd", weights, A).reshape(r, -1)
        mixed_B = np.einsum("qs,qsro->rqo", weights, B).reshape(r, -1)
        pairs[name] = make_pair(name, mixed_A.astype(np.float32), mixed_B.astype(np.float32), 1 / r, path)
    return pairs
