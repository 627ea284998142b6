"""Adapters on disk, in the layout of Hugging Face PEFT; PEFT itself is not needed.

    adapter_config.json        PEFT's fields; peft_type LORA, POLY (Poly and MHR), or POLYMOE for what PEFT
                               lacks
    adapter_model.safetensors  PEFT's names and shapes
    polymoe.json               what PEFT's files cannot say: parts, task names, base, format version. Written
                               last, it vouches for the weights by their SHA-256
    README.md                  a card; one that somebody wrote is left alone

    here                       there, after "base_model.model." and the module's name
    lora_A [1, r, D]           lora_A.weight (r, D)                                  LORA
    lora_B [1, r, O]           lora_B.weight (O, r)
    lora_A [S, r, D]           poly_lora_A (Q, S, D/Q, r)                            POLY, POLYMOE
    lora_B [S, r, O]           poly_lora_B (Q, S, r, O/Q)
    logits [T, Q, S]           poly_router.module_logits (T, Q*S)
    anything else              under its own name, as it is                          POLYMOE

PEFT's Poly knows no alpha, so lora_B is stored times lora_alpha where that loses no bit: for powers of two
from 1 on. Poly with another alpha, or with rank_pattern or alpha_pattern, is POLYMOE, which PEFT refuses
rather than computes wrongly.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import polymoe
from polymoe.adapters.config import AdapterConfig
from polymoe.adapters.inject import Adapter, inject
from polymoe.adapters.methods import METHODS
from polymoe.adapters.model import AdaptedModel
from polymoe.files import PathLike, json_bytes, safetensors_bytes, write_files
from polymoe.interop import peft_config
from polymoe.interop.peft_folder import CARD, CONFIG, FORMAT_VERSION, OURS, WEIGHTS, open_folder

PREFIX = "base_model.model."
MARK = "<!-- written by polymoe; a card without this line is not overwritten -->"

_LORA = {"experts.lora_A": "lora_A.weight", "experts.lora_B": "lora_B.weight"}
_POLY = {
    "experts.lora_A": "poly_lora_A",
    "experts.lora_B": "poly_lora_B",
    "router.logits": "poly_router.module_logits",
}


def _to_disk(key: str, array: np.ndarray, heads: int) -> np.ndarray:
    """An array of ours as PEFT has it under this key."""
    if key in _LORA.values():
        return np.asarray(array[0] if key == "lora_A.weight" else array[0].T)
    if key == "poly_router.module_logits":
        return array.reshape(len(array), -1)
    if key not in ("poly_lora_A", "poly_lora_B"):
        return array
    blocks = np.reshape(array, (*array.shape[:2], heads, -1))  # [S, r, Q, D/Q]
    return np.transpose(blocks, (2, 0, 3, 1) if key == "poly_lora_A" else (2, 0, 1, 3))


def _from_disk(key: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse, into an array of the given shape."""
    if key in _LORA.values():
        return (array if key == "lora_A.weight" else array.T)[None]
    if key in ("poly_lora_A", "poly_lora_B"):
        array = array.transpose((1, 3, 0, 2) if key == "poly_lora_A" else (1, 2, 0, 3))
    return array.reshape(shape)


def _keys(adapter: Adapter, peft_type: str) -> list[tuple[str, str, Any]]:
    """(key in the file, PEFT's name of the parameter, parameter) of all parameters."""
    names = _LORA if peft_type == "LORA" else _POLY
    found = {
        id(parameter): (f"{PREFIX}{module}.{names.get(name, name)}", names.get(name, name), parameter)
        for module, layer in reversed(adapter.layers.items())  # a shared router is the first layer's
        for name, parameter in layer.named_parameters()
    }
    return list(found.values())[::-1]


def _folded(config: AdapterConfig, peft_type: str) -> float:
    """What lora_B is multiplied by in the file."""
    return config.lora_alpha if peft_type == "POLY" and config.lora_alpha is not None else 1.0


def tensors(adapter: Adapter) -> dict[str, np.ndarray]:
    """The content of ``adapter_model.safetensors``."""
    kind = peft_config.peft_type(adapter.config)
    fold, heads = _folded(adapter.config, kind), adapter.config.n_splits
    found = {}
    for key, name, parameter in _keys(adapter, kind):
        array = parameter.data * parameter.data.dtype.type(fold) if name == "poly_lora_B" else parameter.data
        found[key] = _to_disk(name, array, heads)
    return found


def save_adapter(
    base: Any,
    adapter: Adapter,
    folder: PathLike,
    *,
    task_type: str | None = "FEATURE_EXTRACTION",
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Save an adapter of ``base`` into a folder, all files or none.

    ``task_type``: as PEFT has it; PEFT's models pass task ids on only with one. ``provenance``: anything
    JSON can hold, kept in polymoe.json. Raises OSError where the folder cannot be written, and ValueError
    for weights that are not finite.
    """
    folder = Path(folder)
    arrays = tensors(adapter)
    if bad := [key for key, array in arrays.items() if not np.isfinite(array).all()]:
        raise ValueError(f"{folder}: expected finite weights, got NaN or infinity in {', '.join(bad)}")
    weights = safetensors_bytes(arrays, {"format": "pt"})
    name = getattr(base, "name", None)
    ours = {
        "format_version": FORMAT_VERSION,
        "method": adapter.config.method,
        "config": adapter.config.to_dict(),
        "tasks": list(adapter.tasks.names),
        "base": {
            "name": name,
            "model_type": getattr(base, "model_type", None),
            "fingerprint": getattr(base, "fingerprint", None),
        },
        "weights": {"file": WEIGHTS, "sha256": hashlib.sha256(weights).hexdigest()},
        "provenance": {**(provenance or {}), "polymoe_version": polymoe.__version__},
    }
    config = peft_config.to_peft(adapter, name, task_type)
    files = {WEIGHTS: weights, CONFIG: json_bytes(config)}
    if not (folder / CARD).exists() or MARK in (folder / CARD).read_text(encoding="utf-8", errors="replace"):
        files[CARD] = card(adapter, name, str(config["peft_type"])).encode()
    write_files(folder, {**files, OURS: json_bytes(ours)})


def card(adapter: Adapter, base_name: str | None, peft_type: str) -> str:
    """The text of README.md."""
    config, ours = adapter.config, peft_type == "POLYMOE"
    method = METHODS[config.method]
    sizes = f"r = {config.r}, {config.n_skills} skills, {config.n_splits} heads, {len(adapter.layers)} layers"
    loads = ["model = polymoe.load_adapter(polymoe.load_base(NAME_OR_FOLDER), FOLDER)"]
    if not ours:
        loads.append("model = peft.PeftModel.from_pretrained(TORCH_MODEL, FOLDER)")
    return "\n".join(
        [
            "---",
            f"library_name: {'polymoe' if ours else 'peft'}",
            f"tags: [polymoe, {config.method}]",
            "---",
            MARK,
            "",
            f"# {method.title}",
            "",
            f"An adapter for `{base_name}`, by method `{config.method}` ({method.source}): {sizes}.",
            "",
            f"Tasks, in the order of their ids: {', '.join(adapter.tasks.names) or 'none named'}.",
            "",
            "```python",
            *loads,
            "```",
            "",
        ]
    )


def read_adapter(
    base: Any,
    folder: PathLike,
    *,
    tasks: Iterable[str] | None = None,
    check_base: bool = True,
    strict: bool = True,
) -> Adapter:
    """The adapter in a folder that polymoe or PEFT (LORA, POLY) wrote, for ``base``.

    ``tasks``: names of the tasks where the folder does not say them (PEFT's does not; task_0, task_1 ...
    without). ``check_base`` False takes an adapter that was made on other weights. ``strict`` False takes
    what fits where weights are missing (they become zeros) or unexpected (they are left out), with a warning.

    Raises FileNotFoundError for a missing file; ValueError that names the file for one that is broken or
    cut short, another base than the adapter was made on, weights that are missing, unexpected or of another
    shape (they are listed), a newer format, a setting of PEFT's that is not supported, and weights stored
    as a pickle.
    """
    opened = open_folder(folder, tasks)
    if check_base:
        opened.check_base(base)
    fold = _folded(opened.config, opened.kind) if opened.ours else 1.0
    adapter = inject(base, opened.config, opened.tasks, seed=0)
    _fill(adapter, opened.tensors(), opened.kind, fold, opened.path / WEIGHTS, strict)
    return adapter


def load_adapter(
    base: Any, folder: PathLike, *, adapter_name: str = "default", **options: Any
) -> AdaptedModel:
    """An adapted model on ``base`` with the adapter in a folder. ``options``: those of
    :func:`read_adapter`."""
    model = AdaptedModel(base)
    model.load_adapter(folder, adapter_name, **options)
    return model


def _fill(
    adapter: Adapter, found: dict[str, np.ndarray], kind: str, fold: float, path: Path, strict: bool
) -> None:
    keys = _keys(adapter, kind)
    expected = {key for key, _, _ in keys}
    if found.keys() != expected:
        missing, extra = sorted(expected - found.keys()), sorted(found.keys() - expected)
        message = (
            f"{path}: expected the weights of {len(adapter.layers)} layers; "
            f"missing: {', '.join(missing) or 'none'}; unexpected: {', '.join(extra) or 'none'}"
        )
        if strict or len(missing) == len(expected):
            raise ValueError(message)
        warnings.warn(message, stacklevel=4)
    for key, name, parameter in keys:
        if key not in found:
            parameter.data[...] = 0
            continue
        shape = _to_disk(name, parameter.data, adapter.config.n_splits).shape
        if found[key].shape != shape:
            raise ValueError(f"{path}: {key}: expected shape {shape}, got {found[key].shape}")
        if not np.isfinite(found[key]).all():
            raise ValueError(f"{path}: {key}: expected finite weights, got NaN or infinity")
        array = _from_disk(name, found[key].astype(parameter.data.dtype), parameter.data.shape)
        parameter.data[...] = array / parameter.data.dtype.type(fold) if name == "poly_lora_B" else array
