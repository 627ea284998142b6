"""An adapter that starts from trained ones: the second stage of a method, or a bank of LoRAs put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polymoe.adapters.config import AdapterConfig
from polymoe.adapters.inject import Adapter
from polymoe.adapters.methods import configure, find_method

INHERITED = (
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "r", "rank_pattern",
    "lora_alpha", "alpha_pattern", "n_skills", "n_skills_pattern", "n_splits", "temperature",
    "experts", "site", "task_types", "feedforward_modules",
)  # fmt: skip
"""What the first stage decides for the second: sizes, places, tasks."""


def succeed(
    method: str | AdapterConfig, sources: Sequence[Adapter], overrides: Mapping[str, Any]
) -> AdapterConfig:
    """The configuration of an adapter that will :func:`start_from` these: their sizes and places, as many
    skills as they have experts together (and a ``top_k`` of the method's own of no more), all else as the
    method and ``overrides`` say. A configuration that is given stays as it is.

    ValueError for sources that differ in sizes or places, and for heads where they are several.
    """
    if isinstance(method, AdapterConfig):
        return configure(method, **overrides)
    first = sources[0]
    if any(source.config.bias != "none" or source.config.lora_bias for source in sources):
        raise ValueError("init_from: expected adapters without biases (bias 'none'), got some with them")
    for other in sources[1:]:
        for name in ("r", "rank_pattern", "lora_alpha", "alpha_pattern", "n_splits", "experts",
                     "feedforward_modules"):  # fmt: skip
            if (ours := getattr(other.config, name)) != (theirs := getattr(first.config, name)):
                raise ValueError(f"init_from: expected adapters of the same {name}, {theirs!r}, got {ours!r}")
        if list(other.layers) != list(first.layers):
            raise ValueError("init_from: expected adapters of the same modules, got others")
    taken: dict[str, Any] = {name: getattr(first.config, name) for name in INHERITED}
    taken["target_modules"] = tuple(first.layers)
    taken["layers_to_transform"] = taken["layers_pattern"] = taken["exclude_modules"] = None
    counts = {sum(_experts(source, name) for source in sources) for name in first.layers}
    if (k := find_method(method).preset.get("top_k")) is not None:
        taken["top_k"] = min(k, *counts)
    if not first.config.n_skills_pattern:
        taken["n_skills"] = counts.pop()
    elif len(sources) > 1:
        raise ValueError("init_from: expected one adapter (n_skills_pattern differs by layer), got several")
    return configure(method, **{**taken, **overrides})


def start_from(adapter: Adapter, sources: Sequence[Adapter]) -> None:
    """Take over what trained adapters have learnt: every parameter that they have under the same name; the
    experts of several sources stand side by side, and routers are taken from a single source alone. What they
    do not have keeps its own start. Then the routers see their experts (:meth:`Router.start`).

    ValueError where a shape does not fit; the adapter is then as it was.
    """
    theirs = [dict(source.parameters()) for source in sources]
    values: dict[str, np.ndarray] = {}
    for name, parameter in adapter.parameters():
        if name not in theirs[0] or (len(sources) > 1 and ".experts." not in name):
            continue
        found = np.concatenate([parameters[name].data for parameters in theirs])
        if found.shape != parameter.shape:
            raise ValueError(f"init_from: {name}: expected shape {parameter.shape}, got {found.shape}")
        values[name] = found
    for name, parameter in adapter.parameters():
        if name in values:
            parameter.data[...] = values[name]
    for layer in adapter.layers.values():
        layer.router.start(layer.experts)


def _experts(adapter: Adapter, name: str) -> int:
    return adapter.layers[name].experts.n_experts
