"""What an adapter is made of."""

from __future__ import annotations

import re
from typing import Any

from polymoe.adapters import AdaptedModel


def adapter_facts(model: AdaptedModel) -> dict[str, Any]:
    """Method, parts, sizes, base, tasks and parameters of the active adapter, as JSON can hold them; under
    ``layers`` parameters by kind of layer, whose number is written as *."""
    config, adapter = model.config, model.adapter
    counted: set[int] = set()  # a router that layers share counts once
    kinds: dict[str, dict[str, int]] = {}
    for name, layer in adapter.layers.items():
        row = kinds.setdefault(
            re.sub(r"(?<=\.)\d+(?=\.)", "*", name), {"layers": 0, "router": 0, "experts": 0}
        )
        row["layers"] += 1
        for part in ("router", "experts"):
            for _, p in getattr(layer, part).named_parameters():
                row[part] += 0 if id(p) in counted else p.data.size
                counted.add(id(p))
    fields = ("method", "router", "experts", "mixing", "site", "r", "n_skills", "n_splits", "top_k")
    trained = model.get_nb_trainable_parameters()[0]
    return {
        **{field: getattr(config, field) for field in fields},
        "scale": config.scale(""),
        "router_granularity": config.router_granularity,
        "base": getattr(model.base, "name", None),
        "tasks": list(adapter.tasks.names),
        "parameters": trained,
        "layers": kinds,
    }


def describe_parts(facts: dict[str, Any]) -> str:
    """The parts of :func:`adapter_facts` in a line."""
    sizes = [f"rank {facts['r']}", f"scale {facts['scale']:g}"] * (facts["experts"] != "vector")
    sizes += [f"mixing {facts['mixing']}"]
    sizes += [f"{facts['n_splits']} heads"] * (facts["n_splits"] > 1)
    sizes += [f"top {facts['top_k']}"] * (facts["top_k"] is not None)
    sizes += [f"a router for each {facts['router_granularity']}"] * (facts["router_granularity"] != "linear")
    return f"router {facts['router']}, experts {facts['experts']}: {', '.join(sizes)}"
