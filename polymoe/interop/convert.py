"""LoRAs from one format to another; no base weights are needed.

peft   a folder of PEFT's: LORA, one task of POLY, or of any method of ours that is a LoRA for a known task
mlx    a folder of mlx-lm's
gguf   llama.cpp's adapter.gguf; needs the base's config.json for the names of its modules
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from polymoe.files import PathLike, read_json
from polymoe.interop.export import base_config, put_folder
from polymoe.interop.gguf import FILE, read_gguf, write_gguf
from polymoe.interop.lora import Lora, distance, norm
from polymoe.interop.mixture import task_lora
from polymoe.interop.mlx import read_mlx, write_mlx
from polymoe.interop.peft import read_detached
from polymoe.interop.peft_folder import CONFIG, PICKLE, adapters_in, open_folder
from polymoe.models.loading import is_here

FORMATS = ("peft", "mlx", "gguf")
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


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
    task: str | None = None,
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
        if name is None or not is_here(name):  # nothing is downloaded unasked
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
    if path.suffix in PICKLES or (path / PICKLE).is_file():
        raise ValueError(
            f"{path}: expected safetensors or GGUF, got a pickle, which can run any code when it is read; "
            "save it again as safetensors with the library that made it"
        )
    inside = adapters_in(path)
    hint = f"; adapters lie in {', '.join(inside)}" if inside else ""
    raise FileNotFoundError(f"{path}: expected an adapter (PEFT, mlx-lm or GGUF), got none{hint}")


def read_lora(source: PathLike, *, config: Mapping[str, Any] | None = None, task: str | None = None) -> Lora:
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


def _read_peft(folder: Path, task: str | None) -> Lora:
    model = read_detached(folder)
    if task is not None and not model.adapter.needs_tasks:
        raise ValueError(f"task: expected None ({folder} is one LoRA), got {task!r}")
    lora = task_lora(model, task)
    fan_in_fan_out = model.base.fan_in_fan_out
    provenance = {} if task is None else lora.provenance
    about = {**lora.base, **({"fan_in_fan_out": True} if fan_in_fan_out else {})}
    return replace(
        lora, base=about, task_type=open_folder(folder).settings.get("task_type"), provenance=provenance
    )
