"""Between our configuration and PEFT's adapter_config.json."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from polymoe.adapters.config import AdapterConfig
from polymoe.adapters.inject import Adapter
from polymoe.adapters.methods import configure

TYPES = ("LORA", "POLY", "IA3", "POLYMOE")

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
        "lora_bias",
        "rank_pattern",
        "alpha_pattern",
        *_TARGETS,
        *_LAYERS,
    ),
    "POLY": ("r", "n_skills", "n_splits", *_TARGETS),
    "IA3": (*_TARGETS, "feedforward_modules"),
}
# Fields that take only some values here: PEFT's usual one first.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "init_lora_weights": _PLAIN_INIT,
    "init_ia3_weights": (True, False),
    "bias": ("none", "lora_only"),
    "poly_type": ("poly",),
}
_MERGE = (
    "; merge it into its base with PEFT (merge_and_unload, save_pretrained) and load that folder as the base"
)
_REASONS = {
    "bias": ": the base is never changed, so biases of layers without an adapter stay" + _MERGE,
    "init_lora_weights": ": it starts from other weights of the base" + _MERGE,
    "layer_replication": ": the base has the layers that it has" + _MERGE,
    "target_parameters": ": only linear layers are adapted, not bare parameters",
    "trainable_token_indices": ": the base is never changed, embeddings neither" + _MERGE,
    "use_dora": ": DoRA divides by norms of the base's own weights, which no LoRA does" + _MERGE,
}


def peft_type(config: AdapterConfig) -> str:
    """LORA, POLY, IA3, or POLYMOE for what PEFT cannot compute."""
    if config.experts == "vector" and config.router == "constant" and config.n_splits == 1:
        return "IA3"
    if config.experts != "lora" or config.mixing != "factors" or config.router_granularity != "linear":
        return "POLYMOE"
    if config.router == "constant":
        return "LORA"
    plain = not (config.rank_pattern or config.alpha_pattern or config.n_skills_pattern)
    plain = plain and config.gate == "sigmoid" and not (config.average_correction or config.use_rslora)
    if config.router == "task_table" and plain and _is_exact_fold(config.lora_alpha):
        return "POLY"
    return "POLYMOE"


def folded(config: AdapterConfig, peft_type: str) -> float:
    """What lora_B is multiplied by in the file."""
    return config.lora_alpha if peft_type == "POLY" and config.lora_alpha is not None else 1.0


def _is_exact_fold(alpha: float | None) -> bool:
    """Whether numbers times alpha, divided by alpha, come back bit for bit."""
    return alpha is None or (alpha >= 1 and math.frexp(alpha)[0] == 0.5)


def to_peft(
    adapter: Adapter, base_name: str | None, task_type: str | None, fan_in_fan_out: bool = False
) -> dict[str, Any]:
    """The content of adapter_config.json. ``fan_in_fan_out``: of a base that keeps weights as [D, O]."""
    config = adapter.config
    kind = peft_type(config)
    values: dict[str, Any] = {
        "auto_mapping": None,
        "base_model_name_or_path": base_name,
        "exclude_modules": config.exclude_modules,
        "inference_mode": True,
        "modules_to_save": None,
        "peft_type": kind,
        "revision": None,
        "target_modules": config.target_modules,
        "task_type": task_type,
    }
    if kind == "LORA":
        alpha = 1 if config.lora_alpha is None else config.lora_alpha
        return values | {
            "alpha_pattern": dict(config.alpha_pattern),
            "bias": config.bias,
            "fan_in_fan_out": fan_in_fan_out,
            "init_lora_weights": config.init_weights,
            "layers_pattern": config.layers_pattern,
            "layers_to_transform": config.layers_to_transform,
            "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
            "lora_bias": config.lora_bias,
            "lora_dropout": config.lora_dropout,
            "r": config.r,
            "rank_pattern": dict(config.rank_pattern),
            "use_dora": False,
            "use_rslora": config.use_rslora,
        }
    if config.layers_to_transform is not None:  # only PEFT's LoRA knows it: name the modules themselves
        values["target_modules"] = list(adapter.layers)
    if kind == "IA3":
        return values | _ia3_fields(adapter, fan_in_fan_out)
    return values | {
        "r": config.r,
        "init_weights": config.init_weights,
        "n_skills": config.n_skills,
        "n_splits": config.n_splits,
        "n_tasks": len(adapter.tasks),
        "poly_type": "poly",
    }


def _ia3_fields(adapter: Adapter, fan_in_fan_out: bool) -> dict[str, Any]:
    """PEFT wants the names of feedforward_modules among those of target_modules, where both are lists."""
    config = adapter.config
    targets, inputs = config.target_modules, config.feedforward_modules or ()
    found: dict[str, Any] = {"fan_in_fan_out": fan_in_fan_out, "init_ia3_weights": config.init_weights}
    if config.layers_to_transform is None and (
        isinstance(targets, str) or isinstance(inputs, str) or set(inputs) <= set(targets or ())
    ):
        return found | {"feedforward_modules": inputs}
    multiplied: Any = {name: layer.experts for name, layer in adapter.layers.items()}
    on_input = [name for name, experts in multiplied.items() if experts.on_input]
    return found | {"feedforward_modules": on_input, "target_modules": list(adapter.layers)}


def check_type(settings: dict[str, Any], path: Path) -> str:
    """The peft_type; ValueError that names the file for one that we do not read."""
    kind = settings.get("peft_type")
    if kind is None and {"model_class", "model_name"} & settings.keys():
        raise ValueError(
            f"{path}: expected an adapter of PEFT's, got one of the library adapters, whose tensors have "
            "other names; merge it there (merge_adapter) and load what it saves as the base"
        )
    if kind in ("PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "CPT", "CARTRIDGE"):
        raise ValueError(
            f"{path}: peft_type: expected one of {', '.join(TYPES)}, got {kind!r}: learnt tokens in front of "
            "the text are no change of weights, so nothing here can hold them; train LORA, POLY or IA3"
        )
    if kind == "XLORA":
        raise ValueError(
            f"{path}: peft_type: expected one of {', '.join(TYPES)}, got 'XLORA': its router is a network of "
            "its own; load its LoRAs one by one, or start a mixture from them (init_from)"
        )
    if kind not in TYPES:
        raise ValueError(f"{path}: peft_type: expected one of {', '.join(TYPES)}, got {kind!r}{_MERGE}")
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
    if kind == "POLY" and (isinstance(n_tasks, bool) or not isinstance(n_tasks, int) or n_tasks < 1):
        raise ValueError(f"{path}: n_tasks: expected an integer from 1 on, got {n_tasks!r}")
    known = {*_FIELDS[kind], *_IGNORED, "n_tasks"}
    for name, value in settings.items():
        plain = _PLAIN.get(name)
        if name not in known and (value not in plain if plain else value):
            expected = " or ".join(map(repr, plain[:2] if name == "bias" else plain[:1])) if plain else "None"
            raise ValueError(f"{path}: {name}: expected {expected}, got {value!r}{_REASONS.get(name, '')}")
    if kind == "LORA":
        fields["bias"] = settings.get("bias") or "none"
    if fields.get("modules_to_save"):
        raise ValueError(
            f"{path}: modules_to_save: expected None, got {fields['modules_to_save']!r}: whole layers that "
            f"were trained are no part of an adapter here (heads belong to the objective){_MERGE}"
        )
    method = {"LORA": "lora", "IA3": "ia3"}.get(kind, "poly" if fields.get("n_splits", 1) == 1 else "mhr")
    try:
        return configure(method, **fields), n_tasks
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
