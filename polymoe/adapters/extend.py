"""One more task for an adapter that is trained already: the second stage of Poly and MHR.

Which rows of a parameter belong to whom is read off its shapes for no task, for T and for T + 1 tasks: rows
that are there without tasks are shared, those up to T belong to the tasks before, the rest to the new one.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, Literal, get_args

from polymoe.adapters.config import AdapterConfig
from polymoe.adapters.experts import EXPERTS
from polymoe.adapters.inject import Adapter, inject, sites
from polymoe.adapters.routers import ROUTERS
from polymoe.batch import TaskRegistry

Tune = Literal["router", "all", "mu", "head"]
"""What of an adapter is trained for a new task."""


def add_task(base: Any, adapter: Adapter, task: str, tune: Tune = "router", seed: int = 0) -> Adapter:
    """An adapter that knows ``task`` besides those of ``adapter``, which stays as it is.

    The new task gets the last id and, in every parameter that has something of each task, rows of its own:
    of a table of logits one that starts as all did, of private adapters a pair, of C-Poly a row, its weights
    and a pair. Everything else starts with the bits that it has. ``tune`` says what will be trained:

    - "router": what is the new task's own, so that no other task changes by a bit (MHR-z);
    - "all": that and what the tasks share; rows of the other tasks stay (Poly's and MHR's second stage);
    - "mu": all skills, under a uniform router in place of the learnt one (MHR-mu), for every task;
    - "head": nothing; the new task weighs all skills alike.

    Raises ValueError for a name that is taken, for "router" where the router does not go by task, for "mu"
    where tasks share no skills, for an unknown ``tune``, and for a router whose rows are given by hand.
    """
    if tune not in get_args(Tune):
        raise ValueError(f"tune: expected one of {list(get_args(Tune))}, got {tune!r}")
    if task in adapter.tasks:
        raise ValueError(f"task: expected a name besides {list(adapter.tasks.names)}, got {task!r}")
    if tune == "router" and not adapter.needs_tasks:
        raise ValueError(
            f"tune: expected 'all', 'mu' or 'head' (the router {adapter.config.router!r} does not go by "
            "task, so that a new task has no row of its own), got 'router'"
        )
    config = _uniform(base, adapter.config) if tune == "mu" else adapter.config
    extended = inject(base, config, TaskRegistry([*adapter.tasks.names, task]), seed)
    before, shared = dict(adapter.parameters()), _shared_rows(base, config)
    for name, p in extended.parameters():
        old = before[name].data
        corner = tuple(slice(min(extents)) for extents in zip(p.data.shape, old.shape, strict=True))
        p.data[corner] = old[corner]
        if p.data.shape == old.shape:
            p.trainable = p.trainable and tune in ("all", "mu")
        elif tune == "head":
            # Equal logits; positive, as some gates make nothing of zeros.
            if p.trainable and p.group == "router":
                p.data[len(old) :] = 1
            p.trainable = False
        elif tune != "mu":
            p.frozen = range(shared.get(name, 0) if tune == "all" else 0, len(old))
    return extended


def _shared_rows(base: Any, config: AdapterConfig) -> dict[str, int]:
    """How many rows each parameter has that is there without any task."""
    router, experts = ROUTERS[config.router], EXPERTS[config.experts]
    rows = {}
    for site in sites(base, config, 0):
        shapes = {f"router.{part}": shape for part, shape in router.shapes(config, site).items()}
        own = experts.shapes(config, router.n_experts(config, site), site)
        shapes |= {f"experts.{part}": shape for part, shape in own.items()}
        rows.update({f"{site.name}.{part}": shape[0] for part, shape in shapes.items()})
    return rows


def _uniform(base: Any, config: AdapterConfig) -> AdapterConfig:
    """The configuration with a uniform router over the experts that tasks share."""
    router = ROUTERS[config.router]
    if not all(router.n_experts(config, site) for site in sites(base, config, 0)):
        raise ValueError(
            f"tune: expected 'router', 'all' or 'head' (with the router {config.router!r} tasks share no "
            "skills), got 'mu'"
        )
    unused = router.fields - ROUTERS["uniform"].fields - EXPERTS[config.experts].fields
    defaults = {f.name: f.default for f in fields(config) if f.name in unused}
    return replace(config, method="mhr-mu", router="uniform", train_experts=True, **defaults)  # type: ignore[arg-type]
