"""A model's routing by task, as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polymoe.adapters import AdaptedModel, measures
from polymoe.adapters.statistics import RouterStatistics, RoutingSums, reads_texts, router_statistics
from polymoe.batch import Batch, Routings
from polymoe.data import EncodedSplit, Tokens, shortest_first

BATCH_TOKENS = 2048


@dataclass(frozen=True, eq=False)
class RoutingStatistics:
    """What the routers of an adapter do with each of T tasks.

    ``method`` and ``router``: names. ``tasks``: the T rows; ("all",) where the adapter knows no tasks and
    routes everybody alike. ``routers``: one for each, in the order of the layers; one that layers share is
    there once. ``tokens`` [T] int64: how many tokens were read, 0 where the routing needs none.
    """

    method: str
    router: str
    tasks: tuple[str, ...]
    tokens: np.ndarray
    routers: tuple[RouterStatistics, ...]

    @property
    def router_names(self) -> tuple[str, ...]:
        """Names of the routers: a layer, a block, or "model"."""
        return tuple(router.name for router in self.routers)

    def of_layer(self, layer: str) -> RouterStatistics:
        """The router that decides for a layer; KeyError for an unknown one."""
        for router in self.routers:
            if layer in router.layers:
                return router
        known = [name for router in self.routers for name in router.layers]
        raise KeyError(f"layer: expected one of {known}, got {layer!r}")

    def by_size(self) -> dict[int, np.ndarray]:
        """Number of skills -> weights [T, L, Q, S] of the routers that choose from so many."""
        sizes = dict.fromkeys(router.n_skills for router in self.routers)
        return {
            size: np.stack([r.weights for r in self.routers if r.n_skills == size], axis=1) for size in sizes
        }

    @property
    def weights(self) -> np.ndarray:
        """[T, L, Q, S], L the routers. ValueError where they choose from different numbers of skills:
        :meth:`by_size` has those."""
        found = self.by_size()
        if len(found) != 1:
            raise ValueError(f"weights: expected routers with one number of skills, got {sorted(found)}")
        return next(iter(found.values()))

    @property
    def similarity(self) -> np.ndarray:
        """[T, T]: the cosine of two tasks' weights, averaged over routers and heads."""
        return np.asarray(np.mean([router.similarity for router in self.routers], axis=0))

    def nearest(self, task: str, n: int | None = None) -> list[tuple[str, float]]:
        """The other tasks and their similarity to this one, the nearest first; KeyError for an unknown
        task."""
        if task not in self.tasks:
            raise KeyError(f"task: expected one of {list(self.tasks)}, got {task!r}")
        row, similar = self.tasks.index(task), self.similarity
        order = measures.nearest(similar, row)[:n]
        return [(self.tasks[other], float(similar[row, other])) for other in order]

    def summary(self) -> dict[str, float]:
        """The measures as one number each, means over the routers."""
        rows = [router.summary() for router in self.routers]
        return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        return {
            "method": self.method,
            "router": self.router,
            "tasks": list(self.tasks),
            "tokens": self.tokens.tolist(),
            "routers": [router.to_dict() for router in self.routers],
            "similarity": self.similarity.tolist(),
            "mean": self.summary(),
        }

    def _repr_html_(self) -> str:
        from polymoe.report.html import statistics_fragment

        return statistics_fragment(self)

    def __repr__(self) -> str:
        sizes = ", ".join(
            f"{w.shape[1]} routers x {w.shape[2]} heads x {size} skills" for size, w in self.by_size().items()
        )
        means = ", ".join(f"{name}={value:.3f}" for name, value in self.summary().items())
        return f"RoutingStatistics({self.method}: {len(self.tasks)} tasks, {sizes}; {means})"


def routing_statistics(
    model: AdaptedModel,
    data: EncodedSplit | Mapping[str, Sequence[str]] | None = None,
    *,
    batch_tokens: int = BATCH_TOKENS,
) -> RoutingStatistics:
    """What the routers of the active adapter do with each task, in evaluation.

    A router that goes by task (or by nothing) is read as it stands: every task that the adapter knows, no
    text needed, no base run. One that reads examples or tokens is asked about ``data``, an
    :class:`~polymoe.data.EncodedSplit` or texts by task, of which the figures are means: its rows are then
    the tasks that have texts, which need no names that the adapter knows unless it goes by task. Layers may
    have different numbers of skills.

    Raises ValueError without texts where they are needed, for a task without any, and while the adapter is
    disabled; KeyError for tasks that the adapter does not know.
    """
    adapter = model.adapter
    settings = (adapter.config.method, adapter.config.router)
    if not reads_texts(adapter):
        found = router_statistics(adapter)
        tasks = adapter.tasks.names or ("all",)
        return RoutingStatistics(*settings, tasks, np.zeros(len(tasks), np.int64), tuple(found))
    if data is None:
        raise ValueError(f"data: expected texts by task (the router {settings[1]!r} reads them), got None")
    tasks, tokens, rows = _encode(model, data)
    ids = adapter.tasks.ids(tasks) if adapter.needs_tasks else None
    sums = RoutingSums(adapter, len(tasks))
    with model.without_noise():
        for indices in shortest_first(tokens.lengths, max_tokens=batch_tokens):
            token_ids, cu_seqlens = tokens.take(indices)
            routings = Routings()
            owners = rows[indices]
            task_ids = None if ids is None else ids[owners]
            model(Batch(cu_seqlens, token_ids, task_ids, routings=routings))
            sums.add(routings, owners)
    if not (statistics := sums.statistics()):
        raise ValueError("model: expected an enabled adapter, got a disabled one")
    counts = np.bincount(rows, weights=tokens.lengths, minlength=len(tasks)).astype(np.int64)
    return RoutingStatistics(*settings, tasks, counts, tuple(statistics))


def _encode(
    model: AdaptedModel, data: EncodedSplit | Mapping[str, Sequence[str]]
) -> tuple[tuple[str, ...], Tokens, np.ndarray]:
    """The names of the tasks, all tokens, and the task of each text [n]."""
    if isinstance(data, EncodedSplit):
        sizes, tokens = data.sizes, data.inputs
    elif isinstance(data, Mapping):
        for name, texts in data.items():
            if isinstance(texts, str):
                raise TypeError(f"data: {name}: expected a sequence of texts, got a text")
        sizes = {name: len(texts) for name, texts in data.items()}
        tokens = model.base.tokenizer.encode([text for texts in data.values() for text in texts])
    else:
        raise TypeError(f"data: expected an EncodedSplit or texts by task, got {type(data).__name__}")
    if empty := [name for name, size in sizes.items() if not size]:
        raise ValueError(f"data: expected at least one text for each task, got none for {', '.join(empty)}")
    if not sizes:
        raise ValueError("data: expected texts of at least one task, got none")
    return tuple(sizes), tokens, np.repeat(np.arange(len(sizes)), list(sizes.values()))
