"""What the routers do while they learn: a line at each evaluation, and warnings where it goes wrong."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from polymoe.adapters import Adapter, measures
from polymoe.adapters.statistics import (
    RouterStatistics,
    RoutingSums,
    reads_texts,
    router_sites,
    router_statistics,
)
from polymoe.batch import Batch
from polymoe.training.callbacks import Callback, append_line
from polymoe.training.metrics import Evaluation

if TYPE_CHECKING:
    from polymoe.training.trainer import Trainer

PATIENCE = 50
"""Steps after the warm-up before anything is said: routers start alike, and some skills start unused."""
DEAD = 0.1
"""A skill is dead when its load is below this part of an even share, 1 / S."""
TAKES_ALL = 0.9
"""One skill takes all when its load is above this."""
ALIKE = 0.01
"""Tasks are routed alike when no weight differs by more."""
TASKS, ROWS = 2, 8
"""Tasks, and examples or tokens, for each skill, at least, for its load to be told from chance."""
WRITTEN = ("entropy", "effective_skills", "usage", "least_load")
"""What is written of each router; of their mean, everything."""
NAMED = 3
"""Layers that a warning names; of the others it says how many there are."""


class RoutingWarning(UserWarning):
    """Something is wrong with what the routers learn; the text says what to do about it."""


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


class RoutingWatch(Callback):
    """Writes a line at each evaluation after a step, and warns (once of each kind, with
    :class:`RoutingWarning`) of a fault that stands at two evaluations in a row, or at the last.

        {"step": 18, "epoch": 1.0, "split": "valid", "routing": {"mean": {...}, "routers": {NAME: {...}}}}

    Routers that go by task are read as they stand; those that read texts are watched while the split is
    evaluated, so that no forward is spent. Nothing of the training changes.
    """

    def __init__(self, path: Path, adapter: Adapter) -> None:
        self.path, self.adapter = path, adapter
        self.watches = reads_texts(adapter)
        self.sums: RoutingSums | None = None
        self.before: set[Fault] = set()
        self.said: set[str] = set()

    def on_evaluation_batch(self, trainer: Trainer, split: str, batch: Batch) -> None:
        """Add up what the routers of texts decided."""
        if self.watches and trainer.step and batch.routings and batch.task_ids is not None:
            if self.sums is None:
                self.sums = RoutingSums(self.adapter, len(self.adapter.tasks))
            self.sums.add(batch.routings, batch.cu_seqlens, batch.task_ids)

    def on_evaluate(self, trainer: Trainer, split: str, evaluation: Evaluation) -> None:
        """The line, and the warnings."""
        sums, self.sums = self.sums, None
        if not trainer.step or (self.watches and sums is None):
            return
        routers = router_statistics(self.adapter) if sums is None else sums.statistics()
        found = [{**router.summary(), "least_load": float(router.load.min())} for router in routers]
        mean = {name: round(float(np.mean([row[name] for row in found])), 4) for name in found[0]}
        rows = {
            router.name: {name: round(row[name], 4) for name in WRITTEN}
            for router, row in zip(routers, found, strict=True)
        }
        where = {"step": trainer.step, "epoch": trainer.epoch, "split": split}
        append_line(self.path, where | {"routing": {"mean": mean, "routers": rows}})
        if split == "valid" or trainer.state.best_step is None:  # not the best weights, put back at the end
            self._judge(trainer, routers)

    def _judge(self, trainer: Trainer, routers: Sequence[RouterStatistics]) -> None:
        if trainer.step < trainer.config.warmup(trainer.total_steps) + PATIENCE:
            return
        faults = find_faults([router.take(self._judged(trainer)) for router in routers])
        standing = faults if trainer.step == trainer.total_steps else faults & self.before
        self.before = faults
        for kind in sorted({fault.kind for fault in standing} - self.said):
            self.said.add(kind)
            found = sorted(fault for fault in standing if fault.kind == kind)
            warnings.warn(self._text(trainer, kind, found, len(routers)), RoutingWarning, stacklevel=2)

    def _judged(self, trainer: Trainer) -> np.ndarray:
        """The tasks that are trained; of each type one, where routing goes by type."""
        tasks: np.ndarray = trainer.model.tasks.ids(list(trainer.data))
        types = self.adapter.config.task_types
        if types is None:
            return tasks
        first: dict[str, int] = {}
        for task in tasks.tolist():
            first.setdefault(types[task], task)
        return np.array(list(first.values()), np.int64)

    def _text(self, trainer: Trainer, kind: str, faults: Sequence[Fault], n_routers: int) -> str:
        """What is wrong, where, and what helps."""
        skills: dict[str, list[str]] = {}
        for fault in faults:
            skills.setdefault(fault.router, []).append(str(fault.skill))
        shown = [
            name if kind == "alike" else f"{name} ({', '.join(which)})"
            for name, which in list(skills.items())[:NAMED]
        ]
        more = len(skills) - len(shown)
        where = ", ".join(shown) + (f" and {more} more" if more else "")
        what = {
            "dead": f"skills that hardly anything uses (less than {DEAD:g} of an even share), by router",
            "takes all": f"one skill takes more than {TAKES_ALL:.0%} of everything, by router",
            "alike": f"all tasks are routed alike (within {ALIKE:g}) by {len(skills)} of {n_routers} routers",
        }[kind]
        return f"step {trainer.step}: {what}: {where}. {self._remedy(trainer, kind)}"

    def _remedy(self, trainer: Trainer, kind: str) -> str:
        config, training = trainer.model.config, trainer.config
        sites = router_sites(self.adapter).values()
        groups = {p.group for site in sites for _, p in site.router.named_parameters() if p.trainable}
        fields = {"router": "router_learning_rate", "content": "content_learning_rate"}
        rates = [f"{f} (now {getattr(training, f):g})" for group, f in fields.items() if group in groups]
        if kind == "alike":
            return f"Try a higher {' or '.join(rates)}, or a method without routing (lora)."
        tries = [f"a lower {' or '.join(rates)}"] + ["fewer n_skills"]
        if config.top_k is not None:
            tries.insert(0, f"a higher balance_loss (now {config.balance_loss:g})")
        elif "router" in groups and not self.watches:
            tries.insert(1, f"gate_dropout (now {config.gate_dropout:g})")
        return f"Try {', '.join(tries[:-1])} or {tries[-1]}."
