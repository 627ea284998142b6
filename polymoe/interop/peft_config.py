"""Between our configuration and PEFT's adapter_config.json."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from polymoe.adapters.config import AdapterConfig
from polymoe.adapters.inject import Adapter
from polymoe.adapters.methods import configure

TYPES = ("LORA", "POLY", "POLYMOE")

# What says nothing about the function that the adapter computes, or only how it was started.
_IGNORED = {
    "auto_mapping",
    "base_model_name_or_path",
    "fan_in_fan_out",
    "inference_mode",
    "init_weights",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
}
# PEFT values that leave the base as it is; others (pissa, olora ...) change it.
_PLAIN_INIT = (True, False, "gaussian", "orthogonal", None)

_TARGETS = ("target_modules", "exclude_modules", "modules_to_save")
_LAYERS = ("layers_to_transform", "layers_pattern")
_FIELDS = {
    "LORA": (
        "r",
        "lora_alpha",
        "use_rslora",
        "lora_dropout",
        "rank_pattern",
        "alpha_pattern",
        *_TARGETS,
        *_LAYERS,
    ),
    "POLY": ("r", "n_skills", "n_splits", *_TARGETS),
}


def peft_type(config: AdapterConfig) -> str:
    """LORA, POLY, or POLYMOE for what PEFT cannot compute."""
    if config.experts != "lora" or config.mixing != "factors" or config.router_granularity != "linear":
        return "POLYMOE"
    if config.router == "constant":
        return "LORA"
    plain = not (config.rank_pattern or config.alpha_pattern or config.n_skills_pattern)
    plain = plain and config.gate == "sigmoid" and not (config.average_correction or config.use_rslora)
    if config.router == "task_table" and plain and _is_exact_fold(config.lora_alpha):
        return "POLY"
    return "POLYMOE"


def _is_exact_fold(alpha: float | None) -> bool:
    """Whether numbers times alpha, divided by alpha, come back bit for bit."""
    return alpha is None or (alpha >= 1 and math.frexp(alpha)[0] == 0.5)


def to_peft(adapter: Adapter, base_name: str | None, task_type: str | None) -> dict[str, Any]:
    """The content of adapter_config.json."""
    config = adapter.config
    kind = peft_type(config)
    values: dict[str, Any] = {
        "auto_mapping": None,
        "base_model_name_or_path": base_name,
        "exclude_modules": config.exclude_modules,
        "inference_mode": True,
        "modules_to_save": None,
        "peft_type": kind,
        "r": config.r,
        "revision": None,
        "target_modules": config.target_modules,
        "task_type": task_type,
    }
    if kind == "LORA":
        alpha = 1 if config.lora_alpha is None else config.lora_alpha
        return values | {
            "alpha_pattern": dict(config.alpha_pattern),
            "bias": "none",
            "fan_in_fan_out": False,
            "init_lora_weights": config.init_weights,
            "layers_pattern": config.layers_pattern,
            "layers_to_transform": config.layers_to_transform,
            "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
            "lora_dropout": config.lora_dropout,
            "rank_pattern": dict(config.rank_pattern),
            "use_dora": False,
            "use_rslora": config.use_rslora,
        }
    if config.layers_to_transform is not None:  # PEFT's Poly does not know it: name the modules themselves
        values["target_modules"] = list(adapter.layers)
    return values | {
        "init_weights": config.init_weights,
        "n_skills": config.n_skills,
        "n_splits": config.n_splits,
        "n_tasks": len(adapter.tasks),
        "poly_type": "poly",
    }


def check_type(settings: dict[str, Any], path: Path) -> str:
    """The peft_type; ValueError that names the file for one that we do not read."""
    kind = settings.get("peft_type")
    if kind not in TYPES:
        raise ValueError(
            f"{path}: peft_type: expected one of {', '.join(TYPES)}, got {kind!r}; merge others into their "
            "base with PEFT (merge_and_unload, save_pretrained) and load that folder as the base"
        )
    return str(kind)


def from_peft(settings: dict[str, Any], path: Path) -> tuple[AdapterConfig, int]:
    """Our configuration and the number of tasks, of a file that PEFT wrote.

    ValueError that names file and field for a setting that changes what the adapter computes and that we do
    not have.
    """
    kind = settings["peft_type"]
    if kind == "POLYMOE":
        raise ValueError(f"{path}: expected polymoe.json beside it (peft_type POLYMOE), got none")
    fields = {name: settings[name] for name in _FIELDS[kind] if settings.get(name) is not None}
    n_tasks = settings.get("n_tasks", 1) if kind == "POLY" else 0
    known = {*_FIELDS[kind], *_IGNORED, "n_tasks"}
    for name, value in settings.items():
        plain = {"init_lora_weights": _PLAIN_INIT, "bias": ("none",), "poly_type": ("poly",)}.get(name)
        if name not in known and (value not in plain if plain else value):
            raise ValueError(f"{path}: {name}: expected {plain[0] if plain else None!r}, got {value!r}")
    method = "lora" if kind == "LORA" else "poly" if fields.get("n_splits", 1) == 1 else "mhr"
    try:
        return configure(method, **fields), n_tasks
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
