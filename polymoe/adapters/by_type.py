"""Routers that go by the type of a task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from polymoe import tape
from polymoe.adapters.parts import Router, Shapes, Site, expect
from polymoe.batch import Batch, Routing

if TYPE_CHECKING:
    from polymoe.adapters.config import AdapterConfig


class TaskTypes(Router):
    """A row of weights for each type of task, which its tasks share: ALTER.

        w = softmax(z / temperature)                                     z [types, S]
        w = the ``top_k`` largest of them (equal ones: the lower index first), divided by their sum only with
            ``renormalize``

    ``task_types`` has the type of each task, in the order of their ids. ``logits`` [types, 1, S] start from
    1/S, and (1 + boost)/S for two neighbouring experts of each type, the first of which moves from 0 to S - 2
    over the types: so two types that follow each other can share one. Published: the softmax, the boost, the
    temperature 0.1; that two are boosted and where is from the authors' code, for three types and five
    experts, and our reading for other numbers. That what is kept is not divided by its sum is their code's
    too. Group "content": divided by the temperature, a logit moves ten times faster. Xie et al. 2023,
    arXiv 2309.11042.
    """

    needs_tasks = True
    needs_types = True
    fields = frozenset({"task_types", "boost", "top_k", "renormalize"})
    formula = "K S"

    @staticmethod
    def check(config: AdapterConfig) -> None:
        """Types of all tasks, one head, no noise, k at most the number of experts."""
        types, why = config.task_types, f"the router {config.router!r}"
        if not types or not all(isinstance(kind, str) and kind for kind in types):
            raise ValueError(f"task_types: expected the type of each task, in their order, got {types!r}")
        expect(config, "n_splits", 1, why)
        expect(config, "noise", "off", f"{why} draws none")
        expect(config, "gate", "softmax", why)
        expect(config, "gate_dropout", 0, why)
        expect(config, "average_correction", False, why)
        fewest = min([config.n_skills, *config.n_skills_pattern.values()])
        if config.top_k is not None and config.top_k > fewest:
            raise ValueError(f"top_k: expected 1 to {fewest} (the fewest skills), got {config.top_k}")
        if config.top_k is None and config.renormalize:
            raise ValueError("renormalize: expected False (without top_k), got True")

    @staticmethod
    def shapes(config: AdapterConfig, site: Site) -> Shapes:
        """A row for each type."""
        n_types = len(dict.fromkeys(config.task_types or ()))
        return {"logits": (n_types, 1, config.skills(site.name))}

    def __init__(self, config: AdapterConfig, site: Site) -> None:
        super().__init__(config, site)
        types = config.task_types or ()
        if len(types) != site.n_tasks:
            raise ValueError(f"task_types: expected a type for each of {site.n_tasks} tasks, got {types!r}")
        self.types = tuple(dict.fromkeys(types))
        self.type_of_task = np.array([self.types.index(kind) for kind in types], np.int64)
        self.temperature, self.top_k, self.renormalize = config.temperature, config.top_k, config.renormalize
        shape = self.shapes(config, site)["logits"]
        self.logits = site.full(shape, 1 / shape[2], "content")
        for k in range(len(self.types)):
            first = k * max(shape[2] - 2, 0) // max(len(self.types) - 1, 1)
            self.logits.data[k, 0, first : first + 2] *= 1 + config.boost

    def __call__(self, batch: Batch, x: Any) -> Routing:
        """Weights [G, 1, S] of the types in the batch, or [G, k] beside their ids."""
        if batch.task_ids is None:
            raise ValueError("task_ids: expected one per example, got None")
        types, adapter_ids = np.unique(self.type_of_task[batch.task_ids], return_inverse=True)
        adapter_ids = adapter_ids.astype(np.int64, copy=False)
        n, n_skills = len(types), self.logits.shape[2]
        if self.top_k is not None and self.renormalize:
            rows = tape.embedding(types, tape.reshape(self.logits, (len(self.types), n_skills)))
            scaled = tape.multiply(rows, np.full((n, n_skills), 1 / self.temperature, self.logits.data.dtype))
            weights, ids = tape.topk_router(scaled, self.top_k)
            return Routing("group", weights, ids, adapter_ids)
        weights = tape.task_router(self.logits, types, None, self.temperature, "softmax")
        if self.top_k is None:
            return Routing("group", weights, adapter_ids=adapter_ids)
        order = np.argsort(-tape.data_of(weights)[:, 0], axis=1, kind="stable")
        ids = np.sort(order[:, : self.top_k], axis=1)
        kept = tape.embedding(
            (np.arange(n)[:, None] * n_skills + ids).ravel(), tape.reshape(weights, (n * n_skills, 1))
        )
        return Routing("group", tape.reshape(kept, ids.shape), ids, adapter_ids)

    def extra_repr(self) -> str:
        """Sizes."""
        kept = f", top_k={self.top_k}" if self.top_k else ""
        return f"types {', '.join(self.types)}; {self.logits.shape[2]} experts{kept}"
