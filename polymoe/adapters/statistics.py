"""What routers decide, summed up by task: everything out of :class:`~polymoe.batch.Routing`.

router_statistics(adapter)              by task, read without any text
sums = RoutingSums(adapter, n_rows)     by what texts are routed to: after each forward
sums.add(batch.routings, rows)
sums.statistics()
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from polymoe.adapters import measures
from polymoe.adapters.inject import Adapter
from polymoe.adapters.parts import Router
from polymoe.batch import Batch, Routing
from polymoe.tape import data_of


@dataclass(frozen=True, eq=False)
class RouterStatistics:
    """What one router does with T tasks, Q heads and S skills.

    ``layers``: those that it decides for, by name. ``axis``: "group" (by task, or the same for everybody),
    "example" or "token". ``rows`` [T] int64: how many rows of weights the figures of a task are a mean of:
    its tokens, its examples, or 1 where no text was read. ``weights`` [T, Q, S] float64: the mean weights.
    ``chosen`` [T, Q, S] int64: in how many rows a skill was among the chosen (top-k), or had the largest
    weight. ``entropy`` [T, Q]: the mean of the rows' entropies, so that a router that is sure of every token
    and uses all skills over the text has a low entropy and a high usage. ``gates`` [., Q, S]: what the
    weights are made of, before they are normalised, a row a task (or a latent one); None for routers without.
    """

    name: str
    layers: tuple[str, ...]
    axis: str
    rows: np.ndarray
    weights: np.ndarray
    chosen: np.ndarray
    entropy: np.ndarray
    gates: np.ndarray | None = None

    @property
    def n_skills(self) -> int:
        """S."""
        return int(self.weights.shape[-1])

    @property
    def effective_skills(self) -> np.ndarray:
        """[T, Q], the exponential of the entropy (the one that is not divided by log S)."""
        return np.asarray(np.where(self.weights.any(axis=-1), self.n_skills**self.entropy, 0.0))

    @property
    def usage(self) -> np.ndarray:
        """[Q], see :func:`~polymoe.adapters.measures.usage`; every task counts alike."""
        return measures.usage(measures.shares(self.weights))

    @property
    def load(self) -> np.ndarray:
        """[S], the share of everything that falls to each skill; tasks and heads count alike."""
        return measures.shares(measures.shares(self.weights).sum(axis=(0, 1)))

    @property
    def load_balance(self) -> float:
        """See :func:`~polymoe.adapters.measures.load_balance`; rows count alike."""
        rows = self.rows[:, None, None]
        return float(measures.load_balance(self.chosen.sum(axis=(0, 1)), (rows * self.weights).sum((0, 1))))

    @property
    def variation(self) -> float:
        """See :func:`~polymoe.adapters.measures.variation`, of ``load``."""
        return float(measures.variation(self.load))

    @property
    def discreteness(self) -> float | None:
        """See :func:`~polymoe.adapters.measures.discreteness`, mean over tasks and heads; None without
        gates."""
        return None if self.gates is None else float(measures.discreteness(self.gates).mean())

    @property
    def similarity(self) -> np.ndarray:
        """[T, T], see :func:`~polymoe.adapters.measures.similarity`."""
        return measures.similarity(self.weights)

    def take(self, tasks: np.ndarray) -> RouterStatistics:
        """Of some of the tasks, by their rows."""
        arrays = {name: getattr(self, name)[tasks] for name in ("rows", "weights", "chosen", "entropy")}
        return replace(self, **arrays)

    def summary(self) -> dict[str, float]:
        """The measures as one number each, means over heads and the tasks that have rows."""
        known = self.rows > 0
        values = {
            "entropy": float(self.entropy[known].mean()),
            "effective_skills": float(self.effective_skills[known].mean()),
            "usage": float(self.usage.mean()),
            "load_balance": self.load_balance,
            "variation": self.variation,
        }
        return values if self.discreteness is None else values | {"discreteness": self.discreteness}

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        arrays = ("rows", "weights", "chosen", "entropy", "effective_skills", "usage", "load")
        return {
            "name": self.name,
            "layers": list(self.layers),
            "axis": self.axis,
            **{name: getattr(self, name).tolist() for name in arrays},
            "gates": None if self.gates is None else self.gates.tolist(),
            **{f"mean_{name}" if name in arrays else name: x for name, x in self.summary().items()},
        }


class RouterSites(NamedTuple):
    """A router, the layers that it decides for, and how many experts it chooses from."""

    router: Router
    layers: tuple[str, ...]
    n_experts: int


def router_sites(adapter: Adapter) -> dict[str, RouterSites]:
    """The routers of an adapter by name; one that layers share comes once."""
    found: dict[str, RouterSites] = {}
    for name, layer in adapter.layers.items():
        router, earlier = layer.router, found.get(layer.router.name)
        layers = (name,) if earlier is None else (*earlier.layers, name)
        found[router.name] = RouterSites(router, layers, layer.experts.n_experts)
    return found


def reads_texts(adapter: Adapter) -> bool:
    """Whether any router decides by what an example says, and not by its task."""
    return any(site.router.axis != "group" for site in router_sites(adapter).values())


def router_statistics(adapter: Adapter) -> list[RouterStatistics]:
    """The routers of an adapter whose routers go by task, or by nothing: their evaluation routing of each
    task; of everybody in one row where the adapter has no tasks. No text is read, no base is run.

    ValueError for a router that reads texts.
    """
    if reads_texts(adapter):
        raise ValueError(f"data: expected texts (the router {adapter.config.router!r} reads them), got None")
    n_rows = max(len(adapter.tasks), 1)
    rows = np.arange(n_rows, dtype=np.int64)
    batch = Batch(np.arange(n_rows + 1), task_ids=rows if len(adapter.tasks) else None)
    with adapter.without_noise():
        routings = {name: site.router(batch, None) for name, site in router_sites(adapter).items()}
    sums = RoutingSums(adapter, n_rows)
    sums.add(routings, rows)
    return sums.statistics()


def dense_weights(routing: Routing, n_experts: int) -> np.ndarray:
    """The weights of a routing as [rows, Q, S], whatever their form: a row a group, an example or a token."""
    if routing.weights is None:
        return np.eye(n_experts)[:, None]
    weights = data_of(routing.weights)
    if routing.ids is None:
        return np.asarray(weights.reshape(len(weights), -1, weights.shape[-1]))
    dense: np.ndarray = np.zeros((len(weights), 1, n_experts), weights.dtype)
    np.add.at(dense[:, 0], (np.arange(len(weights))[:, None], routing.ids), weights)
    return dense


class RoutingSums:
    """Adds up routings of many forwards, by row: a task, or whatever the caller tells apart."""

    def __init__(self, adapter: Adapter, n_rows: int) -> None:
        self.sites, self.n_rows = router_sites(adapter), n_rows
        self._sums: dict[str, tuple[np.ndarray, ...]] = {}

    def add(self, routings: Mapping[str, Routing], rows: np.ndarray) -> None:
        """What one forward decided; ``rows`` [B] int64 says which row an example belongs to."""
        for name, routing in routings.items():
            weights = dense_weights(routing, self.sites[name].n_experts).astype(np.float64, copy=False)
            chosen = _chosen(routing, weights)
            entropy, owners = measures.entropy(weights), rows
            if routing.axis == "group":
                groups = routing.adapter_ids
                groups = np.zeros(len(rows), np.int64) if groups is None else groups
                weights, chosen, entropy = weights[groups], chosen[groups], entropy[groups]
            elif routing.axis == "token":
                assert routing.cu_seqlens is not None
                owners = np.repeat(rows, np.diff(routing.cu_seqlens))
            found = tuple(self._by_row(owners, x) for x in (np.ones(len(owners)), weights, chosen, entropy))
            before = self._sums.get(name)
            self._sums[name] = found if before is None else tuple(map(np.add, before, found))

    def _by_row(self, owners: np.ndarray, values: np.ndarray) -> np.ndarray:
        belongs = (owners == np.arange(self.n_rows)[:, None]).astype(np.float64)
        return np.tensordot(belongs, values, 1)

    def statistics(self) -> list[RouterStatistics]:
        """Of everything that was added. A row that nothing belonged to is zero."""
        found = []
        for name, (rows, weights, chosen, entropy) in self._sums.items():
            router, layers, _ = self.sites[name]
            n = np.maximum(rows, 1)
            found.append(
                RouterStatistics(
                    name,
                    layers,
                    router.axis,
                    np.rint(rows).astype(np.int64),
                    weights / n[:, None, None],
                    np.rint(chosen).astype(np.int64),
                    entropy / n[:, None],
                    router.gates(),
                )
            )
        return found


def _chosen(routing: Routing, weights: np.ndarray) -> np.ndarray:
    """[rows, Q, S]: 1 for a token's best k skills, else for the one of the largest weight."""
    if routing.ids is not None and routing.axis == "token":
        return np.asarray(weights != 0, np.float64)
    best = np.abs(weights).argmax(axis=-1)
    return np.asarray(np.arange(weights.shape[-1]) == best[..., None], np.float64)
