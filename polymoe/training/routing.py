"""What the routers do while they learn: a line at each evaluation, and warnings where it goes wrong."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from polymoe.adapters import Adapter
from polymoe.adapters.faults import Fault, fault_text, find_faults, of_each_type, remedy
from polymoe.adapters.statistics import (
    RouterStatistics,
    RoutingSums,
    reads_texts,
    router_statistics,
)
from polymoe.batch import Batch
from polymoe.training.callbacks import Callback, append_line
from polymoe.training.metrics import Evaluation

if TYPE_CHECKING:
    from polymoe.training.trainer import Trainer

PATIENCE = 50
"""Steps after the warm-up before anything is said: routers start alike, and some skills start unused."""
WRITTEN = ("entropy", "effective_skills", "usage", "least_load")
"""What is written of each router; of their mean, everything."""
RATES = {"router_learning_rate": "router", "content_learning_rate": "content"}
"""Settings of the training that a remedy may name, and the group of parameters that each is for."""
NAMED = 3
"""Layers that a warning names; of the others it says how many there are."""


class RoutingWarning(UserWarning):
    """Something is wrong with what the routers learn; the text says what to do about it."""


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
            self.sums.add(batch.routings, batch.task_ids)

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
        trainer.tell("on_routing", split, mean)
        if split == "valid" or trainer.state.best_step is None:  # not the best weights, put back at the end
            self._judge(trainer, routers)

    def _judge(self, trainer: Trainer, routers: Sequence[RouterStatistics]) -> None:
        if trainer.step < trainer.config.warmup(trainer.total_steps) + PATIENCE:
            return
        tasks = of_each_type(self.adapter, trainer.model.tasks.ids(list(trainer.data)))
        faults = find_faults([router.take(tasks) for router in routers])
        standing = faults if trainer.step == trainer.total_steps else faults & self.before
        self.before = faults
        for kind in sorted({fault.kind for fault in standing} - self.said):
            self.said.add(kind)
            found = sorted(fault for fault in standing if fault.kind == kind)
            warnings.warn(self._text(trainer, kind, found, len(routers)), RoutingWarning, stacklevel=2)

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
        what = fault_text(kind, len(skills), n_routers)
        rates = {field: trainer.optimizer.rates[group] for field, group in RATES.items()}
        return f"step {trainer.step}: {what}: {where}. {remedy(self.adapter, kind, rates)}"
