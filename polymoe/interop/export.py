"""One task of an adapted model as one LoRA, in other people's formats.

Whatever is written is read again and compared with the model on texts before it is put in place.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from polymoe.adapters.model import AdaptedModel
from polymoe.data import read_tasks
from polymoe.files import PathLike, replace_folder
from polymoe.interop.gguf import model_config, read_gguf, write_gguf
from polymoe.interop.lora import Lora
from polymoe.interop.merged import write_merged
from polymoe.interop.mixture import task_lora
from polymoe.interop.mlx import read_mlx, write_mlx
from polymoe.models.loading import find_base, load_base
from polymoe.models.sentence import read_json, read_sentence_settings

FORMATS = ("peft", "mlx", "gguf", "merged")
TOLERANCE = 1e-5  # of the largest embedding, 1 at least: rounding of float32 through a deep model stays below


@dataclass(frozen=True)
class Exported:
    """What :func:`export_task` wrote. ``rank``: the largest. ``exact``: False for a mean route.

    Largest differences of embeddings over ``n_texts``: ``error``, of the files as they were read again and
    the model; ``moves``, of the model and its base. ``lost``: the norm of the former over that of the latter.
    """

    output: Path
    task: str | None
    to: str
    rank: int
    exact: bool
    error: float
    moves: float
    lost: float
    n_texts: int


def export_task(
    model: Any,
    task: str | None,
    to: str = "peft",
    output: PathLike = "export",
    *,
    texts: Sequence[str] | None = None,
    mean_route: Sequence[str] | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write one task of a model (or of a run, :func:`polymoe.training.load_run`) to the folder ``output``.

    ``to``: "peft"; "mlx"; "gguf" (``adapter.gguf``, needs the library); "merged", the base with the update
    added to its weights. ``task`` may be None where the method does not go by task. ``texts``: what the
    comparison is made on, texts of the shipped tasks by default. ``mean_route``: texts of the task over which
    a router that reads them is averaged.

    Raises KeyError for an unknown task; ValueError for what has no exact export, with the reason, and for a
    task that is missing; FileExistsError for an output that is there; RuntimeError when the comparison fails.
    Nothing is written then.
    """
    model = getattr(model, "model", model)
    if to not in FORMATS:
        raise ValueError(f"to: expected one of {', '.join(FORMATS)}, got {to!r}")
    texts = shipped_texts() if texts is None else list(texts)
    if not texts:
        raise ValueError("texts: expected some to compare on, got none")
    with model.without_noise():
        lora = task_lora(model, task, mean_route)
        exact = all(layer.router.axis == "group" for layer in model.adapter.layers.values())
        expected = model.encode(texts, task)
        with model.disable_adapter():
            base = model.encode(texts)
        found: dict[str, float] = {}

        def write(folder: Path) -> None:
            _write(lora, to, folder, model.base)
            got = _read(to, folder, model.base).encode(texts)
            aim = expected if exact else attach(model.base, lora).encode(texts)
            bound, off = TOLERANCE * max(1.0, float(np.abs(aim).max())), float(np.abs(got - aim).max())
            if not off <= bound:
                raise RuntimeError(
                    f"{output}: expected embeddings within {bound:.1g} of the model's, got {off:.2g}; "
                    "nothing was written"
                )
            found["error"] = float(np.abs(got - expected).max())
            moved = float(np.linalg.norm(expected - base))
            found["lost"] = float(np.linalg.norm(got - expected)) / moved if moved else 0.0

        put_folder(Path(output), write, overwrite)
    rank = max(pair.r for pair in lora.pairs.values())
    moves = float(np.abs(expected - base).max())
    return Exported(
        Path(output), task, to, rank, mean_route is None, moves=moves, n_texts=len(texts), **found
    )


def shipped_texts() -> list[str]:
    """Four texts of each task that comes with polymoe."""

    folder = Path(__file__).parents[1] / "demo/tasks"
    return [example.input for data in read_tasks(folder).values() for example in data.train[:4]]


def folder_name(task: str | None) -> str:
    """A task's name as that of a folder, whatever it holds: no part of a path goes through."""
    name = quote(task or "all", safe=" ")
    return f"%2E{name[1:]}" if name.startswith(".") else name


def put_folder(target: Path, write: Callable[[Path], None], overwrite: bool) -> None:
    """:func:`~polymoe.files.replace_folder` for a folder that a user named.

    FileExistsError for a target that is there, unless it is an adapter or a model and ``overwrite``.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        ours = target.is_dir() and any(
            (target / name).is_file() for name in ("adapter_config.json", "adapter.gguf", "config.json")
        )
        if not (overwrite and ours):
            hint = "--overwrite replaces it" if ours else "which is no adapter"
            raise FileExistsError(f"output: expected a new folder, got {target} ({hint})")
    replace_folder(target, write)


def _write(lora: Lora, to: str, folder: Path, base: Any) -> None:
    if to == "peft":
        lora.save(folder)
    elif to == "mlx":
        write_mlx(lora, folder)
    elif to == "gguf":
        write_gguf(lora, folder, base_config(base))
    else:
        write_merged(lora, folder, base.name)


def _read(to: str, folder: Path, base: Any) -> Any:
    """A model of what was written."""
    if to == "merged":
        return load_base(folder)
    if to == "peft":
        model = AdaptedModel(base)
        model.load_adapter(folder)
        return model
    return attach(base, read_mlx(folder) if to == "mlx" else read_gguf(folder, base_config(base)))


def attach(base: Any, lora: Lora) -> AdaptedModel:
    """A model of a base with a LoRA on it. ValueError where modules or sizes do not fit."""
    model = AdaptedModel(base)
    model.adapters["default"] = lora.adapter(base)
    model.set_adapter("default")
    return model


def base_config(base: Any) -> dict[str, Any]:
    """What a base's config.json says of its kind and sizes, from a base or from the name of one (of which no
    weights are read)."""
    if not isinstance(base, str | os.PathLike):
        return {"model_type": base.model_type, **vars(base.config)}
    path = find_base(base)
    if path.is_file():
        return model_config(path)
    config: dict[str, Any] = read_json(read_sentence_settings(path).transformer / "config.json")
    return config
