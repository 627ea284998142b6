"""The routing of one text: layer by layer and, where the router reads tokens, token by token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from polymoe.adapters import AdaptedModel
from polymoe.adapters.statistics import dense_weights, router_sites
from polymoe.batch import Batch, Routings


@dataclass(frozen=True, eq=False)
class RouterText:
    """What one router decides for one text.

    ``name``, ``layers``, ``axis`` as :class:`~polymoe.adapters.statistics.RouterStatistics` has them.
    ``weights`` [rows, Q, S]: a row for each token where the axis is "token", else one. ``ids`` [rows, K]
    int64: the experts that a row uses, the one with the largest weight first; all S where nothing is left out
    (then by the weights of all heads together).
    """

    name: str
    layers: tuple[str, ...]
    axis: str
    weights: np.ndarray
    ids: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "name": self.name,
            "layers": list(self.layers),
            "axis": self.axis,
            "weights": self.weights.tolist(),
            "ids": self.ids.tolist(),
        }


@dataclass(frozen=True, eq=False)
class TextRouting:
    """The routing of a text: its ``tokens`` [N] as the tokenizer writes them, and what each of ``routers``
    decides. ``task`` is None where none was named."""

    text: str
    task: str | None
    tokens: tuple[str, ...]
    routers: tuple[RouterText, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "text": self.text,
            "task": self.task,
            "tokens": list(self.tokens),
            "routers": [router.to_dict() for router in self.routers],
        }

    def __repr__(self) -> str:
        axes = " and ".join(dict.fromkeys(router.axis for router in self.routers))
        return f"TextRouting({len(self.tokens)} tokens, {len(self.routers)} routers by {axes})"


def text_routing(model: AdaptedModel, text: str, task: str | int | None = None) -> TextRouting:
    """How the active adapter routes a text, in evaluation, cut to what the base takes.

    Raises ValueError without a ``task`` where the adapter goes by task and while the adapter is disabled;
    KeyError or IndexError for an unknown task.
    """
    adapter, tokenizer = model.adapter, model.base.tokenizer
    tokens = tokenizer.encode([text])
    ids = None
    if adapter.needs_tasks or task is not None:
        ids = adapter.tasks.check(task, 1)
    routings = Routings()
    with model.without_noise():
        model(Batch(tokens.cu_seqlens, tokens.ids.astype(np.int64), ids, routings=routings))
    if not routings:
        raise ValueError("model: expected an enabled adapter, got a disabled one")
    routers = []
    for name, site in router_sites(adapter).items():
        routing = routings[name]
        if routing.cu_seqlens is not None and not np.array_equal(routing.cu_seqlens, tokens.cu_seqlens):
            continue  # it reads what is written, not the text
        weights = dense_weights(routing, site.n_experts).astype(np.float64)
        if routing.axis == "group":  # the one example's group
            group = 0 if routing.adapter_ids is None else int(routing.adapter_ids[0])
            weights = weights[group : group + 1]
        size = np.abs(weights).sum(axis=1)
        used = int(np.count_nonzero(size, axis=1).max(initial=0))
        order = np.argsort(-size, axis=1, kind="stable")[:, :used]
        routers.append(RouterText(name, site.layers, routing.axis, weights, order))
    words = tuple(str(tokenizer.tokenizer.id_to_token(int(i))) for i in tokens.ids)
    return TextRouting(text, None if ids is None else adapter.tasks.names[ids[0]], words, tuple(routers))
