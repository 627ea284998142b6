"""The files of an adapter folder, opened and checked without a base."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polymoe.adapters.config import AdapterConfig
from polymoe.adapters.targets import ALL_LINEAR, is_target
from polymoe.batch import TaskRegistry
from polymoe.files import PathLike, parse_safetensors, read_json
from polymoe.interop import peft_config

FORMAT_VERSION = 1
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
OURS, CARD = "polymoe.json", "README.md"
PICKLE = "adapter_model.bin"


@dataclass(frozen=True)
class PeftFolder:
    """``kind``: peft_type. ``base``: name, model_type and fingerprint of the base it was made on, None where
    they are not known, and fan_in_fan_out, whether it keeps weights as [D, O] (Conv1D). ``ours``: polymoe
    wrote it. ``data``: the content of the weights file."""

    path: Path
    kind: str
    settings: dict[str, Any]
    config: AdapterConfig
    tasks: TaskRegistry
    base: dict[str, Any]
    ours: bool
    data: bytes

    def check_base(self, base: Any) -> None:
        """ValueError for a base with other weights than the adapter was made on."""
        made_on, here = self.base["fingerprint"], None
        if made_on is not None:
            here = getattr(base, "fingerprint", None)
        if here is not None and here != made_on:
            raise ValueError(
                f"base: expected {self.base['name']!r} with fingerprint {made_on}, on which {self.path} "
                f"was made, got {getattr(base, 'name', None)!r} with {here}; check_base=False loads it all "
                "the same"
            )

    @property
    def fold(self) -> float:
        """What lora_B is multiplied by in the file."""
        return peft_config.folded(self.config, self.kind) if self.ours else 1.0

    def check_targets(self, names: Iterable[str]) -> None:
        """ValueError for layers that the configuration does not target."""
        targets = self.config.target_modules
        if targets is None or (isinstance(targets, str) and targets.lower() == ALL_LINEAR):
            return
        if strange := [name for name in names if not is_target(self.config, name)]:
            raise ValueError(
                f"{self.path / WEIGHTS}: expected weights of target_modules {targets!r}, "
                f"got {', '.join(strange)}"
            )

    def tensors(self) -> dict[str, np.ndarray]:
        """The weights by their names in the file."""
        return parse_safetensors(self.data, self.path / WEIGHTS)


def open_folder(folder: PathLike, tasks: Iterable[str] | None = None) -> PeftFolder:
    """The folder of an adapter that polymoe or PEFT wrote. ``tasks`` and errors as
    :func:`polymoe.interop.peft.read_adapter`."""
    folder = Path(folder)
    settings = _read_object(folder / CONFIG)
    kind = peft_config.check_type(settings, folder / CONFIG)
    data = _read_weights(folder)
    base: dict[str, Any] = {
        "name": settings.get("base_model_name_or_path"),
        "model_type": None,
        "fingerprint": None,
    }
    ours = (folder / OURS).is_file()
    if ours:
        config, registry, base = _read_ours(folder, data)
        if tasks is not None and TaskRegistry(tasks) != registry:
            raise ValueError(f"tasks: expected those of {folder / OURS}, {list(registry.names)}, got others")
    else:
        config, n_tasks = peft_config.from_peft(settings, folder / CONFIG)
        registry = TaskRegistry([f"task_{i}" for i in range(n_tasks)] if tasks is None else tasks)
        if kind == "POLY" and len(registry) != n_tasks:
            raise ValueError(f"tasks: expected {n_tasks} names ({folder / CONFIG}), got {len(registry)}")
    base["fan_in_fan_out"] = bool(settings.get("fan_in_fan_out"))
    return PeftFolder(folder, kind, settings, config, registry, base, ours, data)


def adapters_in(folder: PathLike) -> list[str]:
    """Names of the folders in a folder that hold an adapter: PEFT puts there what has a name of its own."""
    return sorted(found.parent.name for found in Path(folder).glob(f"*/{CONFIG}"))


def _read_object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def _read_weights(folder: Path) -> bytes:
    if not (folder / WEIGHTS).is_file() and (folder / PICKLE).is_file():
        raise ValueError(
            f"{folder / PICKLE}: expected {WEIGHTS}, got a pickle, which can run any code when it is read; "
            "save it again with safe_serialization=True"
        )
    return (folder / WEIGHTS).read_bytes()


def _read_ours(folder: Path, data: bytes) -> tuple[AdapterConfig, TaskRegistry, dict[str, Any]]:
    path = folder / OURS
    ours = _read_object(path)
    version = ours.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path}: format_version: expected {FORMAT_VERSION} (of this polymoe), got {version!r}"
        )
    try:
        config, registry = AdapterConfig(**ours["config"]), TaskRegistry(ours["tasks"])
        base = {key: ours["base"][key] for key in ("name", "model_type", "fingerprint")}
        expected = ours["weights"]["sha256"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected config, tasks, base and weights, got {error!r}") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != expected:
        raise ValueError(
            f"{folder / WEIGHTS}: expected the weights that {OURS} was saved with (sha256 {expected}), "
            f"got {digest}; to load weights that were replaced on purpose, remove {OURS}"
        )
    return config, registry, base
