"""Adapters on disk, in the layout of Hugging Face PEFT; PEFT itself is not needed.

    adapter_config.json        PEFT's fields; peft_type LORA, POLY (Poly and MHR), IA3, or POLYMOE for what
                               PEFT lacks
    adapter_model.safetensors  PEFT's names and shapes (:mod:`polymoe.interop.peft_keys`)
    polymoe.json               what PEFT's files cannot say: parts, task names, base, format version. Written
                               last, it vouches for the weights by their SHA-256
    README.md                  a card; one that somebody wrote is left alone

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
from polymoe.adapters.inject import Adapter, assemble, inject
from polymoe.adapters.methods import METHODS
from polymoe.adapters.model import AdaptedModel
from polymoe.files import PathLike, json_bytes, safetensors_bytes, write_files
from polymoe.interop import peft_config
from polymoe.interop.peft_folder import CARD, CONFIG, FORMAT_VERSION, OURS, WEIGHTS, open_folder
from polymoe.interop.peft_keys import describe, entries, find_sites, without_head
from polymoe.nn import Module

MARK = "<!-- written by polymoe; a card without this line is not overwritten -->"


def tensors(adapter: Adapter) -> dict[str, np.ndarray]:
    """The content of ``adapter_model.safetensors``."""
    kind = peft_config.peft_type(adapter.config)
    fold = peft_config.folded(adapter.config, kind)
    found = {}
    for entry in entries(adapter, kind):
        array = entry.parameter.data
        if entry.name == "poly_lora_B":
            array = array * array.dtype.type(fold)
        found[entry.key] = entry.to_disk(array)
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
    config = peft_config.to_peft(adapter, name, task_type, getattr(base, "fan_in_fan_out", False))
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
    """The adapter in a folder that polymoe or PEFT (LORA, POLY, IA3) wrote, for ``base``.

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
    adapter = inject(base, opened.config, opened.tasks, seed=0)
    _fill(adapter, opened.tensors(), opened.kind, opened.fold, opened.path / WEIGHTS, strict)
    return adapter


def read_detached(folder: PathLike, *, tasks: Iterable[str] | None = None) -> AdaptedModel:
    """The adapter in a folder without its base, which need not be here or of a family that polymoe runs: its
    layers have the names and widths that the file tells. It can be looked at, converted and merged, not run.

    Raises as :func:`read_adapter`; ValueError for a method whose file does not tell the widths of its layers.
    """
    opened = open_folder(folder, tasks)
    found, path = opened.tensors(), opened.path / WEIGHTS
    sites = find_sites(opened.config, {key: array.shape for key, array in found.items()}, len(opened.tasks))
    if not sites:
        raise ValueError(
            f"{path}: expected weights that tell the layers of the base, got {describe(sorted(found)[:3])} "
            f"...; a {opened.config.method!r} adapter is read with its base"
        )
    opened.check_targets([site.name for site in sites])
    adapter = assemble(opened.config, opened.tasks, sites)
    _fill(adapter, found, opened.kind, opened.fold, path, strict=True)
    model = AdaptedModel(Absent(opened.base))
    model.hold(adapter)
    return model


class Absent(Module):
    """Stands for a base that is not here: its ``name``, ``model_type`` and ``fingerprint`` are known at most;
    whatever would run it is a ValueError."""

    def __init__(self, about: Mapping[str, Any]) -> None:
        self.name, self.model_type, self.fingerprint = (
            about.get(key) for key in ("name", "model_type", "fingerprint")
        )
        self.fan_in_fan_out = bool(about.get("fan_in_fan_out"))

    @property
    def tokenizer(self) -> Any:
        """There is none."""
        raise ValueError(f"base: expected {self.name!r}, which is not here, to run texts, got none")

    def __call__(self, batch: Any) -> Any:
        """Nothing runs."""
        return self.tokenizer


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
    places = entries(adapter, kind)
    expected = {entry.key for entry in places}
    found = without_head(found, expected)
    if found.keys() != expected:
        missing, extra = sorted(expected - found.keys()), sorted(found.keys() - expected)
        message = (
            f"{path}: expected the weights of {len(adapter.layers)} layers; "
            f"missing: {', '.join(missing) or 'none'}; unexpected: {describe(extra)}"
        )
        if strict or len(missing) == len(expected):
            raise ValueError(message)
        warnings.warn(message, stacklevel=4)
    for entry in places:
        parameter, key = entry.parameter, entry.key
        if key not in found:
            parameter.data[...] = 0
            continue
        if found[key].shape != entry.shape:
            raise ValueError(f"{path}: {key}: expected shape {entry.shape}, got {found[key].shape}")
        if not np.isfinite(found[key]).all():
            raise ValueError(f"{path}: {key}: expected finite weights, got NaN or infinity")
        array = entry.from_disk(found[key].astype(parameter.data.dtype))
        parameter.data[...] = array / array.dtype.type(fold) if entry.name == "poly_lora_B" else array
