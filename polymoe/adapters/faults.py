"""What can be wrong with what routers learnt, and what helps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from polymoe.adapters import measures
from polymoe.adapters.inject import Adapter
from polymoe.adapters.statistics import RouterStatistics, reads_texts, router_sites

DEAD = 0.1
"""A skill is dead when its load is below this part of an even share, 1 / S."""
TAKES_ALL = 0.9
"""One skill takes all when its load is above this."""
ALIKE = 0.01
"""Tasks are routed alike when no weight differs by more."""
TASKS, ROWS = 2, 8
"""Tasks, and examples or tokens, for each skill, at least, for its load to be told from chance."""


class Fault(NamedTuple):
    """What is wrong: its kind ("dead", "takes all", "alike"), the router, and the skill (-1: all)."""

    kind: str
    router: str
    skill: int = -1


def find_faults(routers: Sequence[RouterStatistics]) -> set[Fault]:
    """The faults of routers that choose between several skills.

    Whether skills are in use is asked of tables of at least twice as many tasks as skills (with fewer, some
    skills find no task as a matter of course) and of routers that have read enough. Whether tasks are alike
    is asked of routers that go by task or example (a token's routing need not differ between tasks), and is a
    fault only where it is so in most of them.
    """
    faults, alike = set(), set()
    for router in routers:
        n_skills, n_rows = router.n_skills, int(router.rows.sum())
        if n_skills == 1:
            continue
        load = router.load
        if n_rows >= n_skills * (TASKS if router.axis == "group" else ROWS):
            if (load > TAKES_ALL).any():
                faults.add(Fault("takes all", router.name, int(load.argmax())))
                continue
            faults |= {Fault("dead", router.name, int(s)) for s in np.flatnonzero(load < DEAD / n_skills)}
        known = measures.shares(router.weights[router.rows > 0])
        if router.axis != "token" and len(known) > 1 and float(np.ptp(known, axis=0).max()) < ALIKE:
            alike.add(Fault("alike", router.name))
    return faults | alike if 2 * len(alike) > len(routers) else faults


def learns_routing(adapter: Adapter) -> bool:
    """Whether any router has a choice, and parameters that are trained."""
    return any(
        site.n_experts > 1 and any(p.trainable for _, p in site.router.named_parameters())
        for site in router_sites(adapter).values()
    )


def of_each_type(adapter: Adapter, tasks: np.ndarray) -> np.ndarray:
    """The tasks (ids) themselves or, where routing goes by type, the first of each type."""
    types = adapter.config.task_types
    if types is None:
        return tasks
    first: dict[str, int] = {}
    for task in tasks.tolist():
        first.setdefault(types[task], task)
    return np.array(list(first.values()), np.int64)


def fault_text(kind: str, n_faulty: int, n_routers: int) -> str:
    """What a kind of fault is, in so many of the routers."""
    return {
        "dead": f"skills that hardly anything uses (less than {DEAD:g} of an even share), by router",
        "takes all": f"one skill takes more than {TAKES_ALL:.0%} of everything, by router",
        "alike": f"all tasks are routed alike (within {ALIKE:g}) by {n_faulty} of {n_routers} routers",
    }[kind]


def remedy(adapter: Adapter, kind: str, rates: Mapping[str, float]) -> str:
    """What to try against a kind of fault; ``rates``: the learning rates it was trained with, as far as they
    are known."""
    config = adapter.config
    sites = router_sites(adapter).values()
    groups = {p.group for site in sites for _, p in site.router.named_parameters() if p.trainable}
    fields = {"router": "router_learning_rate", "content": "content_learning_rate"}
    changed = [
        field + (f" (now {rates[field]:g})" if field in rates else "")
        for group, field in fields.items()
        if group in groups
    ]
    if kind == "alike":
        return f"Try a higher {' or '.join(changed)}, or a method without routing (lora)."
    tries = [f"a lower {' or '.join(changed)}"] + ["fewer n_skills"]
    if config.top_k is not None:
        tries.insert(0, f"a higher balance_loss (now {config.balance_loss:g})")
    elif "router" in groups and not reads_texts(adapter):
        tries.insert(1, f"gate_dropout (now {config.gate_dropout:g})")
    return f"Try {', '.join(tries[:-1])} or {tries[-1]}."
