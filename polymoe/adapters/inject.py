"""An adapter for a whole base: one :class:`AdapterLayer` for each module that the configuration targets."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from polymoe.adapters.config import AdapterConfig
from polymoe.adapters.experts import EXPERTS
from polymoe.adapters.layers import SITES, AdapterLayer, make_layer, site_of
from polymoe.adapters.parts import Router, Site
from polymoe.adapters.targets import is_excluded, pattern_key, resolve, select
from polymoe.batch import TaskRegistry
from polymoe.nn import Module
from polymoe.parameters import Parameter


class Adapter(Module):
    """What :func:`inject` makes: ``config`` with the targets resolved, ``tasks``, and ``layers`` by the
    name of their module.

    ``slots`` says which layer belongs to which module of the base; batches carry it (``Batch.adapters``).
    A router that several layers share is named after the first of them.
    """

    def __init__(self, config: AdapterConfig, tasks: TaskRegistry, layers: dict[str, AdapterLayer]) -> None:
        self.config, self.tasks, self.layers = config, tasks, layers
        self.slots: Mapping[Module, AdapterLayer] = {}

    @property
    def needs_tasks(self) -> bool:
        """Whether batches must have task ids."""
        return any(layer.router.needs_tasks for layer in self.layers.values())

    def parameters(self) -> list[tuple[str, Parameter]]:
        """The parameters by name, for instance ``encoder.layer.0.attention.self.query.experts.lora_A``."""
        return [(name.removeprefix("layers."), p) for name, p in self.named_parameters()]

    def _repr_html_(self) -> str:
        from polymoe.report.notebook import adapter_fragment  # looks at adapters, as it does at models

        return adapter_fragment(self)

    def __repr__(self) -> str:
        c = self.config
        sizes = [f"method={c.method}", f"r={c.r}", f"mixing={c.mixing}", f"tasks={list(self.tasks.names)}"]
        lines: dict[str, list[str]] = {}
        for name, layer in self.layers.items():
            parts = ", ".join(filter(None, (layer.extra_repr(), repr(layer.router), repr(layer.experts))))
            lines.setdefault(parts, []).append(name)
        body = "".join(
            f"\n  {len(names)} x ({parts}):" + "".join(f"\n    {name}" for name in names)
            for parts, names in lines.items()
        )
        return f"Adapter({', '.join(sizes)}{body}\n)"


def inject(base: Any, config: AdapterConfig, tasks: TaskRegistry, seed: int) -> Adapter:
    """The adapter of ``base`` (a module tree) that ``config`` describes. The base itself is not changed.

    ``target_modules`` None stands for ``base.default_target_modules``, or for the last feed-forward where
    that is the site; "all-linear" leaves out ``base.output_head``, a name, where the base has one.
    Raises ValueError when no module matches (the candidates are listed) and when sizes do not fit.
    """
    config, modules, names = _resolve(base, config)
    _warn_of_unused(config, modules, names)
    adapter = assemble(config, tasks, [site_of(modules[name], name, len(tasks), seed) for name in names])
    adapter.slots = MappingProxyType({modules[name]: layer for name, layer in adapter.layers.items()})
    return adapter


def assemble(config: AdapterConfig, tasks: TaskRegistry, sites: Sequence[Site]) -> Adapter:
    """An adapter for layers of these names and sizes, which belong to no base."""
    routers: dict[str, Router] = {}
    layers: dict[str, AdapterLayer] = {}
    for site in sites:
        shared = config.router_name(site.name)
        layers[site.name] = make_layer(config, tasks, site, routers.get(shared))
        routers.setdefault(shared, layers[site.name].router).name = shared
    _check_shared(config, list(layers))
    return Adapter(config, tasks, layers)


def sites(base: Any, config: AdapterConfig, n_tasks: int) -> list[Site]:
    """The layers of ``base`` that :func:`inject` would adapt; nothing is made."""
    _, modules, names = _resolve(base, config)
    return [site_of(modules[name], name, n_tasks) for name in names]


def _resolve(base: Any, config: AdapterConfig) -> tuple[AdapterConfig, dict[str, Any], list[str]]:
    """The configuration with its targets resolved, all modules, and the names of those to adapt."""
    modules = dict(base.named_modules())
    kind = SITES[config.site]
    candidates = [name for name, module in modules.items() if isinstance(module, kind)]
    values: dict[str, Any] = {}
    for field, attribute in EXPERTS[config.experts].defaults.items():
        own = getattr(config, field)
        values[field] = getattr(base, attribute, None) if own is None else own
    default = values["target_modules"] if config.site == "linear" else candidates[-1:] or None
    head = getattr(base, "output_head", None)
    values["target_modules"] = resolve(config.target_modules, candidates, default, head)
    config = replace(config, **values)
    return config, modules, select(config, modules, candidates, config.site)


def _check_shared(config: AdapterConfig, names: list[str]) -> None:
    """Layers that share a router choose from the same number of skills."""
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(config.router_name(name), name)
        if config.skills(name) != config.skills(other):
            raise ValueError(
                f"n_skills_pattern: expected as many skills in {name} as in {other}, whose router it shares "
                f"({config.skills(other)}), got {config.skills(name)}"
            )


def _warn_of_unused(config: AdapterConfig, modules: Mapping[str, Module], names: list[str]) -> None:
    """What was asked for and has no effect is most likely a slip, but PEFT takes it, so it is no error."""
    if config.exclude_modules and not any(is_excluded(config, name) for name in modules):
        warnings.warn(f"exclude_modules: {config.exclude_modules!r} excludes nothing", stacklevel=4)
    for field in ("rank_pattern", "alpha_pattern", "n_skills_pattern"):
        pattern = getattr(config, field)
        used = {pattern_key(pattern, name) for name in names}
        if unused := [key for key in pattern if key not in used]:
            warnings.warn(f"{field}: no adapted module matches {', '.join(unused)}", stacklevel=4)
