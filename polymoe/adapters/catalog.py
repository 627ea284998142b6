"""The table of methods as data: what each is made of, needs and trains."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from polymoe.adapters.experts import EXPERTS
from polymoe.adapters.inject import sites
from polymoe.adapters.layers import formula, n_parameters
from polymoe.adapters.methods import METHODS, configure
from polymoe.adapters.routers import ROUTERS

LETTERS = (
    "D, O: width in and out of a layer; r: rank; S: skills; T: tasks; Q: heads (n_splits); I: latent tasks; "
    "n_B: pairs of each task's own (n_specific); m_D, m_O: columns of a leaf, the order-th root of D or O, "
    "rounded up; d: values that a vector multiplies, O or D; K: types of tasks; F: width within a "
    "feed-forward; M: shared experts"
)


def catalog(base: Any = None, n_tasks: int = 8, **overrides: Any) -> list[dict[str, Any]]:
    """A row for each method: its name, title, source, parts and sizes, what it ``needs`` ("task ids", "task
    types" or "nothing"), the method that it comes ``after``, whose trained adapter it starts from, and the
    ``formula`` of the parameters that it trains in a layer, as text.

    With a ``base`` also their number there, ``parameters``, for ``n_tasks`` tasks and in the modules that a
    recipe adapts. ``overrides``: of every configuration.
    """
    if n_tasks < 1:
        raise ValueError(f"n_tasks: expected at least 1, got {n_tasks}")
    rows = []
    for name, method in METHODS.items():
        router = ROUTERS[METHODS[name].preset["router"]]
        types = {"task_types": [f"type {i % 3}" for i in range(n_tasks)]} if router.needs_types else {}
        config = configure(name, **types, **overrides)
        if config.target_modules is None:
            config = replace(config, target_modules=EXPERTS[config.experts].usual_targets)
        row: dict[str, Any] = {
            "method": name,
            "aliases": list(method.aliases),
            "title": method.title,
            "source": method.source,
            **{part: getattr(config, part) for part in ("router", "experts", "mixing", "site")},
            **{size: getattr(config, size) for size in ("r", "n_skills", "n_splits")},
            "needs": "task types" if router.needs_types else "task ids" if router.needs_tasks else "nothing",
            "after": method.after,
            "formula": formula(config),
        }
        if base is not None:
            row["parameters"] = n_parameters(config, sites(base, config, n_tasks))
        rows.append(row)
    return rows
