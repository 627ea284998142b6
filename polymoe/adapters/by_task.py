"""Routers that go by task, or by nothing at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from polymoe import tape
from polymoe.adapters.parts import Router, Shapes, Site, expect, sigmoid
from polymoe.batch import Batch, Routing

if TYPE_CHECKING:
    from polymoe.adapters.config import AdapterConfig


class Constant(Router):
    """One expert, for everybody: LoRA, TLoRA."""

    count = "1"

    @staticmethod
    def check(config: AdapterConfig) -> None:
        """One expert and one head."""
        _expect_one(config, "n_skills", "n_splits")

    def __call__(self, batch: Batch, x: Any) -> Routing:
        """One group of all examples."""
        return Routing("group", None)


class Uniform(Router):
    """All experts alike, for everybody: MHR-mu, 1/S each. The mean of the factors is one pair, so heads
    make no difference. Caccia et al. 2022."""

    def __init__(self, config: AdapterConfig, site: Site) -> None:
        super().__init__(config, site)
        n = self.n_experts(config, site)
        self.weights = np.full((1, 1, n), 1 / n, site.dtype)

    def __call__(self, batch: Batch, x: Any) -> Routing:
        """One group of all examples."""
        return Routing("group", self.weights, adapter_ids=np.zeros(batch.n_examples, np.int64))


class OneHot(Router):
    """Every task its own expert: private adapters. No weights are made, and experts of absent tasks are
    not touched."""

    needs_tasks = True
    count = "T"

    @staticmethod
    def check(config: AdapterConfig) -> None:
        """One expert a task, one head."""
        _expect_one(config, "n_skills", "n_splits")

    @staticmethod
    def n_experts(config: AdapterConfig, site: Site) -> int:
        """T."""
        return site.n_tasks

    def __init__(self, config: AdapterConfig, site: Site) -> None:
        super().__init__(config, site)
        self.n_tasks = site.n_tasks

    def __call__(self, batch: Batch, x: Any) -> Routing:
        """Group t is expert t."""
        return Routing("group", None, adapter_ids=batch.task_ids)

    def extra_repr(self) -> str:
        """Sizes."""
        return f"{self.n_tasks} tasks"


class Given(Router):
    """Skills of each task said by hand (Poly's "expert" variant): ``task_skills`` has a word of 0 and 1 for
    each task, in the order of their ids; the ones of a word share the weight alike. Ponti et al. 2022."""

    needs_tasks = True
    fields = frozenset({"task_skills"})

    @staticmethod
    def check(config: AdapterConfig) -> None:
        """A digit for each skill, and at least one 1 in every word."""
        words = config.task_skills
        if not words:
            raise ValueError(f"task_skills: expected a word of 0 and 1 for each task, got {words!r}")
        for word in words:
            fits = isinstance(word, str) and len(word) == config.n_skills and set(word) <= {"0", "1"}
            if not fits or "1" not in word:
                raise ValueError(
                    f"task_skills: expected {config.n_skills} digits 0 or 1 (n_skills) and at least one 1, "
                    f"got {word!r}"
                )

    def __init__(self, config: AdapterConfig, site: Site) -> None:
        super().__init__(config, site)
        words = config.task_skills or ()
        if len(words) != site.n_tasks:
            raise ValueError(f"task_skills: expected a word for each of {site.n_tasks} tasks, got {words!r}")
        used = np.array([[int(digit) for digit in word] for word in words], site.dtype)
        self.weights = (used / used.sum(axis=1, keepdims=True))[:, None]

    def __call__(self, batch: Batch, x: Any) -> Routing:
        """Group t is task t."""
        return Routing("group", self.weights, adapter_ids=batch.task_ids)


class TaskTable(Router):
    """A table of logits, a row for each task: Poly (one head), MHR (Q heads), TensorPoly.

        s = sigmoid((z + log u - log(1-u)) / temperature)   in training, u uniform; sigmoid(z) in evaluation
        w = s / (sum_s s + 1e-12)                           over the skills of a head

    ``logits`` [T, Q, S], group "router", from U(-1e-3, 1e-3). ``noise``: a draw for each example
    ("per_example", as PEFT), for each task of the batch ("per_task": tasks stay one group each, which is
    faster), or none ("off": sigmoid(z) in training as well). ``gate_dropout``: probability that a gate is 0
    in training, drawn as often as the noise (for each task with "off"). ``gate``: the sigmoid, or another
    kind of :func:`polymoe.functional.task_router`; "softmax" and "l2" take no noise and no
    ``average_correction``. ``ibp_prior``: coefficient of :func:`polymoe.functional.ibp_loss`, an auxiliary
    loss. Ponti et al. 2022 (Polytropon), Caccia et al. 2022 (MHR).
    """

    needs_tasks = True
    fields = frozenset({"ibp_prior"})
    formula = "T Q S"

    @staticmethod
    def check(config: AdapterConfig) -> None:
        """Any number of skills and heads; a gate that is no sigmoid has no noise and its own normaliser."""
        expect(config, "noise", ("per_example", "per_task", "off"), f"the router {config.router!r}")
        if config.gate in ("softmax", "l2"):
            why = f"the gate {config.gate!r} takes none"
            expect(config, "noise", "off", why)
            expect(config, "average_correction", False, why)

    @staticmethod
    def shapes(config: AdapterConfig, site: Site) -> Shapes:
        """The table."""
        return {"logits": (site.n_tasks, config.n_heads, config.skills(site.name))}

    def __init__(self, config: AdapterConfig, site: Site) -> None:
        super().__init__(config, site)
        self.noise, self.temperature, self.gate = config.noise, config.temperature, config.gate
        self.gate_dropout, self.average_correction = config.gate_dropout, config.average_correction
        self.ibp_prior = config.ibp_prior
        self.logits = site.uniform("logits", TaskTable.shapes(config, site)["logits"], 1e-3, "router")

    def groups(self, batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tasks [G] of the groups, the group of each example [B], and what keys the groups' noise [G]: a
        group for each example when it has its own noise, else one for each distinct task."""
        if self.training and self.noise == "per_example" and batch.task_ids is not None:
            return batch.task_ids, np.arange(batch.n_examples, dtype=np.int64), batch.random_ids
        tasks, adapter_ids = batch.task_groups
        return tasks, adapter_ids, tasks

    def __call__(self, batch: Batch, x: Any) -> Routing:
        """Weights [G, Q, S] of the groups."""
        tasks, adapter_ids, random_ids = self.groups(batch)
        shape, dtype = self.logits.shape[1:], self.logits.data.dtype
        u = mask = aux = None
        if self.training and self.noise != "off":
            u = self.uniform("router", batch, random_ids, shape, dtype)
        if self.training and self.gate_dropout:
            p = self.gate_dropout
            dropped = self.uniform("gate_dropout", batch, random_ids, shape, dtype) < p
            mask = np.where(dropped, 0, 1 / (1 - p)).astype(dtype, copy=False)
        if self.training and self.ibp_prior:
            aux = tape.multiply(tape.ibp_loss(self.logits), np.asarray(self.ibp_prior, dtype))
        weights = tape.task_router(
            self.logits, tasks, u, self.temperature, self.gate, mask, self.average_correction
        )
        return Routing("group", weights, adapter_ids=adapter_ids, aux=aux)

    def gates(self) -> np.ndarray | None:
        """Sigmoids of the logits [T, Q, S]."""
        return sigmoid(self.logits.data) if self.gate in ("sigmoid", "straight_through") else None

    def extra_repr(self) -> str:
        """Sizes."""
        n_tasks, heads, skills = self.logits.shape
        return f"{n_tasks} tasks, {f'{heads} heads, ' * (heads > 1)}{skills} skills, noise={self.noise}"


class CommonSpecific(Router):
    """Skills that all tasks share beside some of each task's own: C-Poly.

        w[t] = concat(common[t], V[t])          over n_skills + T * n_specific experts

    ``common``: a :class:`TaskTable` over ``n_skills`` experts. V is used as it is, without sigmoid, noise or
    normaliser, the same for all heads, and starts as 1 for a task's own experts and 0 for the others: the
    weights of a task so sum to 1 + n_specific. ``specific``: "learned_row", all of V [T, T n_specific] is
    learnt, so that a task can borrow another's experts (as published); "diagonal", the weights of its own
    [T, n_specific]; "fixed", nothing. With the last two and mixing "outputs" only the experts that a task
    has are computed. V belongs to group "skills": it is a gain, and the rate of logits is too high for it.
    Wang et al. 2023, arXiv 2312.03248.
    """

    needs_tasks = True
    fields = frozenset({"ibp_prior", "n_specific", "specific"})
    count = "(S + T n_B)"
    formula = "T Q S + T T n_B"

    check = staticmethod(TaskTable.check)

    @staticmethod
    def n_experts(config: AdapterConfig, site: Site) -> int:
        """Common ones first."""
        return config.skills(site.name) + site.n_tasks * config.n_specific

    @staticmethod
    def shapes(config: AdapterConfig, site: Site) -> Shapes:
        """The table of the common part, V."""
        n = {"learned_row": site.n_tasks * config.n_specific, "diagonal": config.n_specific, "fixed": 0}
        width = n[config.specific]
        common = {f"common.{name}": shape for name, shape in TaskTable.shapes(config, site).items()}
        return common | ({"specific": (site.n_tasks, width)} if width else {})

    def __init__(self, config: AdapterConfig, site: Site) -> None:
        super().__init__(config, site)
        self.common = TaskTable(config, site)
        self.kind, self.n_specific, self.n_tasks = config.specific, config.n_specific, site.n_tasks
        self.sparse = config.mixing == "outputs" and config.specific != "learned_row"
        eye = np.repeat(np.eye(site.n_tasks, dtype=site.dtype), config.n_specific, axis=1)
        self.own = eye  # [T, T n_specific]: which specific experts are a task's own
        if config.specific == "learned_row":
            self.specific = site.full(eye.shape, 0, "skills")
            self.specific.data[...] = eye
        elif config.specific == "diagonal":
            self.specific = site.full((site.n_tasks, config.n_specific), 1, "skills")

    def __call__(self, batch: Batch, x: Any) -> Routing:
        """Weights [G, Q, n_skills + T n_specific], or [G, n_skills + n_specific] beside their ids."""
        routing = self.common(batch, x)
        tasks = self.common.groups(batch)[0]
        if self.sparse:
            weights, ids = self._sparse(routing.weights, tasks)
        else:
            weights, ids = tape.concat(routing.weights, self._rows(tasks)), None
        return Routing("group", weights, ids, routing.adapter_ids, routing.aux)

    def gates(self) -> np.ndarray | None:
        """Those of the common experts."""
        return self.common.gates()

    def _sparse(self, common: Any, tasks: np.ndarray) -> tuple[Any, np.ndarray]:
        n, k, groups = common.shape[2], self.n_specific, len(tasks)
        rows = np.ones((groups, k), self.own.dtype)
        if self.kind == "diagonal":
            rows = tape.embedding(tasks, self.specific)
        first = np.broadcast_to(np.arange(n), (groups, n))
        ids = np.concatenate([first, n + tasks[:, None] * k + np.arange(k)], axis=1)
        return tape.reshape(tape.concat(common, rows), (groups, n + k)), ids

    def _rows(self, tasks: np.ndarray) -> Any:
        """V of the groups [G, T n_specific]."""
        if self.kind == "learned_row":
            return tape.embedding(tasks, self.specific)
        own = self.own[tasks]
        if self.kind == "fixed":
            return own
        copies = np.tile(np.eye(self.n_specific, dtype=own.dtype), (self.n_tasks, 1))  # to every task's place
        return tape.multiply(tape.dense(tape.embedding(tasks, self.specific), copies, None), own)

    def extra_repr(self) -> str:
        """Sizes."""
        return f"{self.n_specific} of each task's own, specific={self.kind}"


def _expect_one(config: AdapterConfig, *fields: str) -> None:
    for field in fields:
        expect(config, field, 1, f"the router {config.router!r} gives no weights to mix by")
