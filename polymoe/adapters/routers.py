"""Routers: who decides which experts an example uses, and how much of each.

A router is called with ``(batch, x)`` and returns a :class:`~polymoe.batch.Routing`. It says how many
experts it chooses from (``n_experts``), for how many heads (``n_heads``), and whether it goes by task
(``needs_tasks``). The entries of ``ROUTERS`` are made from ``(config, n_tasks, name, seed, dtype)``, where
``name`` is that of the adapted module, which keys all randomness.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from polymoe import random, tape
from polymoe.adapters import initial
from polymoe.batch import Batch, Routing
from polymoe.nn import Module, Parameter

if TYPE_CHECKING:
    from polymoe.adapters.config import AdapterConfig


class Constant(Module):
    """One expert, for everybody: LoRA."""

    needs_tasks = False
    n_heads = 1
    n_experts = 1

    def __init__(self, config: AdapterConfig, n_tasks: int, name: str, seed: int, dtype: Any) -> None:
        pass

    @staticmethod
    def check(config: AdapterConfig) -> None:
        """One expert and one head."""
        _expect_one(config, "n_skills", "n_splits")

    def __call__(self, batch: Batch, x: Any) -> Routing:
        """One group of all examples."""
        return Routing("group", None)


class OneHot(Module):
    """Every task its own expert: private adapters. No weights are made, and experts of absent tasks are
    not touched."""

    needs_tasks = True
    n_heads = 1

    def __init__(self, config: AdapterConfig, n_tasks: int, name: str, seed: int, dtype: Any) -> None:
        self.n_experts = n_tasks

    @staticmethod
    def check(config: AdapterConfig) -> None:
        """One expert a task, one head."""
        _expect_one(config, "n_skills", "n_splits")

    def __call__(self, batch: Batch, x: Any) -> Routing:
        """Group t is expert t."""
        return Routing("group", None, adapter_ids=batch.task_ids)

    def extra_repr(self) -> str:
        """Sizes."""
        return f"{self.n_experts} tasks"


class TaskTable(Module):
    """A table of logits, a row for each task: Poly (one head), MHR (Q heads).

        s = sigmoid((z + log u - log(1-u)) / temperature)   in training, u uniform; sigmoid(z) in evaluation
        w = s / (sum_s s + 1e-12)                           over the skills of a head

    ``logits`` [T, Q, S], group "router", from U(-1e-3, 1e-3). ``noise``: a draw for each example
    ("per_example", as PEFT), for each task of the batch ("per_task": tasks stay one group each, which is
    faster), or none ("off": sigmoid(z) in training as well). ``gate_dropout``: probability that a gate is 0
    in training, drawn as often as the noise (for each task with "off"). ``gate``: the sigmoid, or another
    kind of :func:`polymoe.functional.task_router`; "softmax" and "l2" take no noise and no
    ``average_correction``. Ponti et al. 2022 (Polytropon), Caccia et al. 2022 (MHR).
    """

    needs_tasks = True

    def __init__(self, config: AdapterConfig, n_tasks: int, name: str, seed: int, dtype: Any) -> None:
        self.name, self.noise = name, config.noise
        self.temperature, self.gate = config.temperature, config.gate
        self.gate_dropout, self.average_correction = config.gate_dropout, config.average_correction
        self.n_heads, self.n_experts = config.n_splits, config.n_skills
        shape = (n_tasks, self.n_heads, self.n_experts)
        self.logits = Parameter(initial.uniform(seed, f"{name}.logits", shape, 1e-3, dtype), "router")

    @staticmethod
    def check(config: AdapterConfig) -> None:
        """Any number of skills and heads; a gate that is no sigmoid has no noise and its own normaliser."""
        if config.gate in ("softmax", "l2"):
            for field, expected in (("noise", "off"), ("average_correction", False)):
                if (value := getattr(config, field)) != expected:
                    raise ValueError(
                        f"{field}: expected {expected!r} (the gate {config.gate!r} takes none), got {value!r}"
                    )

    def __call__(self, batch: Batch, x: Any) -> Routing:
        """A group for each example when it has its own noise, else one for each distinct task."""
        if self.training and self.noise == "per_example" and batch.task_ids is not None:
            tasks, adapter_ids = batch.task_ids, np.arange(batch.n_examples, dtype=np.int64)
            random_ids = batch.random_ids
        else:
            tasks, adapter_ids = batch.task_groups
            random_ids = tasks
        u = mask = None
        if self.training and self.noise != "off":
            u = self._uniform("router", batch, random_ids)
        if self.training and self.gate_dropout:
            p = self.gate_dropout
            mask = np.where(self._uniform("gate_dropout", batch, random_ids) < p, 0, 1 / (1 - p))
            mask = mask.astype(self.logits.data.dtype, copy=False)
        weights = tape.task_router(
            self.logits, tasks, u, self.temperature, self.gate, mask, self.average_correction
        )
        return Routing("group", weights, adapter_ids=adapter_ids)

    def _uniform(self, stream: str, batch: Batch, random_ids: np.ndarray) -> np.ndarray:
        """[G, Q, S] in (0, 1)."""
        n = self.n_heads * self.n_experts
        u = random.uniform(batch.seed, stream, batch.step, self.name, random_ids, n)
        return u.reshape(-1, self.n_heads, self.n_experts).astype(self.logits.data.dtype, copy=False)

    def extra_repr(self) -> str:
        """Sizes."""
        heads = f"{self.n_heads} heads, " if self.n_heads > 1 else ""
        return f"{len(self.logits.data)} tasks, {heads}{self.n_experts} skills, noise={self.noise}"


ROUTERS: dict[str, type[Constant] | type[OneHot] | type[TaskTable]] = {
    "constant": Constant,
    "one_hot": OneHot,
    "task_table": TaskTable,
}


def _expect_one(config: AdapterConfig, *fields: str) -> None:
    for field in fields:
        if getattr(config, field) != 1:
            raise ValueError(
                f"{field}: expected 1 (the router {config.router!r} gives no weights to mix by), "
                f"got {getattr(config, field)}"
            )
