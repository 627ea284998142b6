"""An adapter for a whole base: one :class:`LinearAdapter` for each module that the configuration targets."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from polymoe.adapters.config import AdapterConfig
from polymoe.adapters.layers import LinearAdapter, make_adapter
from polymoe.adapters.parts import Site
from polymoe.adapters.targets import is_excluded, pattern_key, resolve, select
from polymoe.batch import TaskRegistry
from polymoe.nn import Linear, Module, Parameter


class Adapter(Module):
    """What :func:`inject` makes: ``config`` with the targets resolved, ``tasks``, and ``layers`` by the
    name of their module.

    ``slots`` says which layer belongs to which module of the base; batches carry it (``Batch.adapters``).
    """

    def __init__(self, config: AdapterConfig, tasks: TaskRegistry, layers: dict[str, LinearAdapter]) -> None:
        self.config, self.tasks, self.layers = config, tasks, layers
        self.slots: Mapping[Linear, LinearAdapter] = {}

    @property
    def needs_tasks(self) -> bool:
        """Whether batches must have task ids."""
        return any(layer.router.needs_tasks for layer in self.layers.values())

    def parameters(self) -> list[tuple[str, Parameter]]:
        """The parameters by name, for instance ``encoder.layer.0.attention.self.query.experts.lora_A``."""
        return [(name.removeprefix("layers."), p) for name, p in self.named_parameters()]

    def __repr__(self) -> str:
        c = self.config
        sizes = [f"method={c.method}", f"r={c.r}", f"mixing={c.mixing}", f"tasks={list(self.tasks.names)}"]
        lines: dict[str, list[str]] = {}
        for name, layer in self.layers.items():
            parts = f"{layer.extra_repr()}, {layer.router!r}, {layer.experts!r}"
            lines.setdefault(parts, []).append(name)
        body = "".join(
            f"\n  {len(names)} x ({parts}):" + "".join(f"\n    {name}" for name in names)
            for parts, names in lines.items()
        )
        return f"Adapter({', '.join(sizes)}{body}\n)"


def inject(base: Any, config: AdapterConfig, tasks: TaskRegistry, seed: int) -> Adapter:
    """The adapter of ``base`` (a module tree) that ``config`` describes. The base itself is not changed.

    ``target_modules`` None stands for ``base.default_target_modules``; "all-linear" leaves out
    ``base.output_head``, a name, where the base has one. Raises ValueError when no module matches (the
    candidates are listed) and when sizes do not fit.
    """
    config, modules, names = _resolve(base, config)
    _warn_of_unused(config, modules, names)
    layers = {name: make_adapter(config, tasks, modules[name], name, seed) for name in names}
    adapter = Adapter(config, tasks, layers)
    adapter.slots = MappingProxyType({modules[name]: layer for name, layer in layers.items()})
    return adapter


def sites(base: Any, config: AdapterConfig, n_tasks: int) -> list[Site]:
    """The layers of ``base`` that :func:`inject` would adapt; nothing is made."""
    _, modules, names = _resolve(base, config)
    return [Site(name, modules[name].in_features, modules[name].out_features, n_tasks) for name in names]


def _resolve(base: Any, config: AdapterConfig) -> tuple[AdapterConfig, dict[str, Any], list[str]]:
    """The configuration with its targets resolved, all modules, and the names of those to adapt."""
    modules = dict(base.named_modules())
    linear = [name for name, module in modules.items() if isinstance(module, Linear)]
    targets = resolve(
        config.target_modules,
        linear,
        getattr(base, "default_target_modules", None),
        getattr(base, "output_head", None),
    )
    config = replace(config, target_modules=targets)
    return config, modules, select(config, modules, linear)


def _warn_of_unused(config: AdapterConfig, modules: Mapping[str, Module], names: list[str]) -> None:
    """What was asked for and has no effect is most likely a slip, but PEFT takes it, so it is no error."""
    if config.exclude_modules and not any(is_excluded(config, name) for name in modules):
        warnings.warn(f"exclude_modules: {config.exclude_modules!r} excludes nothing", stacklevel=4)
    for field in ("rank_pattern", "alpha_pattern", "n_skills_pattern"):
        pattern = getattr(config, field)
        used = {pattern_key(pattern, name) for name in names}
        if unused := [key for key in pattern if key not in used]:
            warnings.warn(f"{field}: no adapted module matches {', '.join(unused)}", stacklevel=4)
