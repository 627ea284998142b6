"""Whose tasks the rows of an activation are: of this forward, or of the one that backward recomputes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
import torch

from polymoe.adapters.inject import Adapter
from polymoe.batch import Batch, Routing, Routings

KEPT = 10_000
"""Passes that are remembered, for backward to ask for."""
GRAPHS = 8
"""Passes whose routings, and torch's graphs below them, are remembered."""


@dataclass(eq=False)
class Scope:
    """What somebody said of the calls within: the tasks, that the adapter is off, that a text is written.

    ``size``: how many examples there are, where it is known. ``standing``: routings that stand while a text
    is written, by the number of examples."""

    passes: Passes
    ids: Any = None
    size: int | None = None
    disabled: bool = False
    writing: bool = False
    standing: dict[int, Routings] = field(default_factory=dict)
    last: Pass | None = None
    outer: Scope | None = None


_scope: ContextVar[Scope | None] = ContextVar("polymoe_torch_scope", default=None)


@dataclass
class Decision:
    """The routing of a router that several layers share; its weights are a tensor with torch's graph."""

    routing: Routing
    weights: torch.Tensor | None
    decider: str
    users: set[str]


class Pass:
    """One forward of a model: whose rows there are, and what keys its noise.

    ``checked``: the number of examples was compared with an input of the model, so that an activation with a
    multiple of it has several rows of each. ``whole``: it is a call of the model, not of parts of it.
    """

    def __init__(
        self,
        scope: Scope,
        ids: Any,
        size: int | None,
        step: int,
        *,
        checked: bool,
        whole: bool = False,
        mask: np.ndarray | None = None,
    ) -> None:
        self.scope, self.ids, self.size, self.step = scope, ids, size, step
        self.checked, self.whole = checked, whole
        self.mask = None if mask is None or mask.all() else mask
        self.seen: set[str] = set()
        self.decisions: dict[tuple[str, int | None], Decision] = {}
        self.aux: dict[str, torch.Tensor] = {}
        self.node = current_node()
        self._batches: dict[tuple[int, ...], Batch] = {}

    def hear(self, layer: str, aux: torch.Tensor) -> None:
        """Take note of an auxiliary loss. RuntimeError where it comes too late to be part of the loss."""
        if current_node() in (None, self.node):
            self.aux[layer] = self.aux[layer] + aux if layer in self.aux else aux
        elif layer not in self.aux:
            raise RuntimeError(
                f"use_reentrant: expected False, so that the auxiliary loss of {layer} is part of the loss, "
                "got True"
            )

    def forget(self) -> None:
        """Let go of torch's graphs."""
        self.decisions.clear()
        self.aux = {layer: aux.detach() for layer, aux in self.aux.items()}

    def batch(self, shape: tuple[int, ...]) -> Batch:
        """The batch that an activation [B, ..., D] of this shape is."""
        found = self._batches.get(shape[:-1])
        if found is None:
            found = self._batches[shape[:-1]] = self._batch(shape[0], prod(shape[:-1]))
        return found

    def _batch(self, rows: int, tokens: int) -> Batch:
        n = rows if self.size is None else self.size
        if rows != n and (not self.checked or n == 0 or rows % n):
            what = "a multiple of them" if self.checked else "one for each"
            raise ValueError(f"x: expected {n} examples, as there are task_ids, or {what}, got {rows} rows")
        return self._packed(np.arange(n + 1, dtype=np.int64) * (tokens // max(n, 1)))

    def _packed(self, cu_seqlens: np.ndarray) -> Batch:
        passes, n = self.scope.passes, len(cu_seqlens) - 1
        routings = None
        if self.scope.writing:
            # The tokens that are written later are routed as the prompt was, and pairs are mixed once.
            standing = self.scope.standing
            routings = standing[n] if n in standing else standing.setdefault(n, Routings().take(np.arange(0)))
        return Batch(
            cu_seqlens,
            task_ids=passes.checked(self.ids, n),
            example_ids=np.arange(n, dtype=np.int64) + (rank() << 32),
            seed=passes.seed,
            step=self.step,
            routings=routings,
        )

    def kept(self, shape: tuple[int, ...]) -> tuple[Batch, torch.Tensor, torch.Tensor] | None:
        """Where the mask hides tokens of an activation [B, L, D]: the batch of the others, their rows, and
        those of the hidden ones."""
        mask = self.mask
        if mask is None or shape[:-1] != mask.shape:
            return None
        batch = self._packed(np.concatenate([[0], np.cumsum(mask.sum(axis=1))]).astype(np.int64))
        seen, masked = (torch.from_numpy(np.flatnonzero(m)) for m in (mask, ~mask))
        return batch, seen, masked


class Passes:
    """The passes of one injected model. ``adapter`` says which tasks there are."""

    def __init__(self, adapter: Adapter, seed: int) -> None:
        self.adapter, self.seed, self.step, self.training = adapter, seed, 0, False
        self.learns = any(p.trainable for _, p in adapter.parameters())
        self._forget()

    def _forget(self) -> None:
        self.last: Pass | None = None  # with auxiliary losses that no loss has yet
        # (torch's counter of graph nodes, pass): nodes from there on belong to the pass.
        self._begun: deque[tuple[int, Pass]] = deque(maxlen=KEPT)
        self._outside = Scope(self)

    def __getstate__(self) -> dict[str, Any]:
        return {name: vars(self)[name] for name in ("adapter", "seed", "step", "training", "learns")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def checked(self, ids: Any, n_examples: int) -> np.ndarray | None:
        """Ids of examples, see :meth:`polymoe.batch.TaskRegistry.check`; None where they are not needed."""
        if self.adapter.needs_tasks or (ids is not None and len(self.adapter.tasks)):
            return self.adapter.tasks.check(ids, n_examples)
        return None

    @property
    def scope(self) -> Scope:
        """The innermost scope of this model."""
        scope = _scope.get()
        while scope is not None and scope.passes is not self:
            scope = scope.outer
        return self._outside if scope is None else scope

    @contextmanager
    def within(self, **changes: Any) -> Iterator[Scope]:
        """A scope that differs from the one that holds."""
        scope = replace(self.scope, **{"standing": {}, "last": None, **changes}, outer=_scope.get())
        token = _scope.set(scope)
        try:
            yield scope
        finally:
            _scope.reset(token)

    @contextmanager
    def forward(self, ids: Any, size: int | None, mask: np.ndarray | None) -> Iterator[Pass]:
        """One forward of the whole model, with ``size`` examples (None: not known)."""
        holds, again = self.scope, self._recomputed()
        if again is not None and ids is None:
            holds, ids = again.scope, again.ids
        elif ids is None:
            ids = holds.ids
        if holds.writing and holds.size and size is not None and size % holds.size == 0:
            size = holds.size  # beams: several rows of each example
        if size is not None and not holds.disabled:
            ids = self.checked(ids, size)
        known = _length(ids) if size is None else size
        step = again.step if again is not None else self._next_step()
        changes = {"ids": ids, "disabled": holds.disabled, "writing": holds.writing}
        with self.within(**changes, standing=holds.standing) as scope:
            scope.last = Pass(scope, ids, known, step, checked=size is not None, whole=True, mask=mask)
            self._begin(scope.last)
            yield scope.last

    def _next_step(self) -> int:
        self.step += self.training
        return self.step

    def _begin(self, begun: Pass) -> None:
        self._begun.append((torch.autograd._get_sequence_nr(), begun))
        if len(self._begun) > GRAPHS:
            self._begun[-GRAPHS - 1][1].forget()

    def current(self, layer: str) -> Pass:
        """The pass in which this layer is called."""
        if (again := self._recomputed()) is not None:
            return again
        scope = self.scope
        if scope.last is None or (layer in scope.last.seen and not scope.last.whole):
            # Parts of the model called one by one: a layer that comes again begins another pass.
            n = _length(scope.ids)
            scope.last = Pass(scope, scope.ids, n, self._next_step(), checked=scope.writing)
            self._begin(scope.last)
        scope.last.seen.add(layer)
        return scope.last

    def _recomputed(self) -> Pass | None:
        """Within backward, the pass that it recomputes; None elsewhere, and in a forward begun there."""
        node, last = current_node(), self.scope.last
        if node is None or (last is not None and last.node == node):
            return None
        for start, begun in reversed(self._begun):
            if start <= node:
                return begun
        raise RuntimeError(
            f"task_ids: expected backward within {KEPT} forwards of the model (its layers are recomputed), "
            "got it later"
        )


def current_node() -> int | None:
    """The number of the node of torch's graph that backward is at, None outside of backward. Nodes are
    numbered as they are made, so that it tells which forward made it."""
    node = torch._C._current_autograd_node()
    return None if node is None else int(node._sequence_nr())


def rank() -> int:
    """Of this process among those that train together; the examples of each have noise of their own."""
    distributed = torch.distributed
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def _length(ids: Any) -> int | None:
    return None if ids is None or np.ndim(ids) == 0 else len(ids)
