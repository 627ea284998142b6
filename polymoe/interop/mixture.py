"""What an adapted model computes for one task, as one LoRA.

For a known task a mixture of factors is one pair, ``A = sum_s w_s A_s`` and ``B = sum_s w_s B_s``, by block
for heads; leaves of tensor products are mixed before they are multiplied. A mixture of outputs with weights
that the task fixes is the experts one after the other, each B times its weight: the ranks add up, and a
common A stays one. Routers that read the text have no such weights; what can be had is their mean over texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from polymoe import tape
from polymoe.adapters.inject import Adapter
from polymoe.adapters.layers import AdapterLayer
from polymoe.adapters.low_rank import LowRankExperts
from polymoe.adapters.methods import METHODS
from polymoe.adapters.model import AdaptedModel
from polymoe.batch import Batch, Routing, Routings
from polymoe.interop.lora import Lora, Pair

ONE = Batch(np.array([0, 1]))  # one text of one token


def task_lora(model: AdaptedModel, task: str | None, mean_route: Sequence[str] | None = None) -> Lora:
    """What a model computes for a task, as a LoRA; errors as :func:`export_task`."""
    adapter, base = model.adapter, model.base
    if task is None and adapter.needs_tasks:
        raise ValueError(f"task: expected one of {list(adapter.tasks.names)}, got None")
    ids = None if task is None else np.array([adapter.tasks.id(task)])
    _check_low_rank(adapter)
    if mean_route is None:
        routes = {name: _task_route(adapter, layer, ids) for name, layer in adapter.layers.items()}
    else:
        routes = _mean_routes(model, task, mean_route)
    pairs = {name: _pair(adapter, layer, routes[name]) for name, layer in adapter.layers.items()}
    for name, layer in adapter.layers.items():
        pairs[name] = replace(pairs[name], bias=_bias(base, name, layer))
    provenance = {"task": task, "method": adapter.config.method, "mean_route": mean_route is not None}
    about = {key: getattr(base, key, None) for key in ("name", "model_type", "fingerprint")}
    return Lora(pairs, about, provenance=provenance)


def _task_route(adapter: Adapter, layer: AdapterLayer, ids: np.ndarray | None) -> np.ndarray:
    """Weights [Q, S] of a task, float64."""
    if layer.router.axis != "group":
        raise ValueError(
            f"task: expected a router that goes by task, got {adapter.config.router!r} of the method "
            f"{adapter.config.method!r}, which decides by what a text says: no LoRA is the same. mean_route "
            "exports its mean over texts, and says how far that is off"
        )
    weights: np.ndarray = _dense(layer, layer.router(replace(ONE, task_ids=ids), None))[0]
    return weights


def _mean_routes(model: AdaptedModel, task: str | None, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Weights [Q, S] by layer, the mean over texts (over tokens, where each has its own)."""
    if not len(texts):
        raise ValueError("mean_route: expected texts, got none")
    ids = None if task is None else model.tasks.check(task, len(texts))
    sums: dict[str, np.ndarray] = {}
    counts: dict[str, int] = {}

    def embed(batch: Batch) -> Any:
        routings = Routings()
        own = None if ids is None else ids[batch.example_ids]
        vectors = model.embed(replace(batch, task_ids=own, routings=routings))
        for name, layer in model.adapter.layers.items():
            routing = routings[layer.router.name]
            rows = _dense(layer, routing)
            if routing.axis == "group" and routing.adapter_ids is not None:
                rows = rows[routing.adapter_ids]
            sums[name] = sums.get(name, 0) + rows.sum(axis=0)
            counts[name] = counts.get(name, 0) + len(rows)
        return vectors

    model.base.encode(texts, embed=embed)
    return {name: total / counts[name] for name, total in sums.items()}


def _dense(layer: AdapterLayer, routing: Routing) -> np.ndarray:
    """Weights [rows, Q, S] over all experts, float64: a routing without weights chooses one."""
    experts: Any = layer.experts
    n = len(tape.data_of(experts.factors(None, ONE)[1]))
    if routing.weights is None:
        chosen = np.zeros(1, np.int64) if routing.adapter_ids is None else routing.adapter_ids
        one_hot: np.ndarray = np.eye(n)[chosen][:, None]
        return one_hot
    weights: np.ndarray = tape.data_of(routing.weights).astype(np.float64)
    if routing.ids is not None:
        dense = np.zeros((len(weights), n))
        np.add.at(dense, (np.arange(len(weights))[:, None], routing.ids), weights)
        weights = dense
    return weights if weights.ndim == 3 else weights[:, None]


def _check_low_rank(adapter: Adapter) -> None:
    for layer in adapter.layers.values():
        if not isinstance(layer.experts, LowRankExperts):
            what = f"{adapter.config.experts!r} ({METHODS[adapter.config.method].title})"
            raise ValueError(
                f"method: expected experts of low rank, got {what}: what they do is no update of low rank to "
                "a weight, and no LoRA holds it"
            )


def _pair(adapter: Adapter, layer: AdapterLayer, weights: np.ndarray) -> Pair:
    """The experts of a layer under weights [Q, S]."""
    experts: Any = layer.experts
    dtype = adapter.parameters()[0][1].data.dtype
    A, B, left = experts.factors(weights[None].astype(dtype), ONE)
    A, B = (tape.data_of(part).astype(np.float64) for part in (A, B))
    if left is None:
        mixed = A[0], B[0]
    elif experts.mixing != "outputs":
        mixed = _mix(weights, A), _mix(weights, B)
    elif len(A) == 1:
        mixed = A[0], _mix(weights, B)
    else:
        used = np.flatnonzero(weights[0])
        mixed = np.concatenate(A[used]), np.concatenate(weights[0, used, None, None] * B[used])
    return Pair(mixed[0].astype(np.float32), mixed[1].astype(np.float32), experts.scale)


def _bias(base: Any, name: str, layer: AdapterLayer) -> np.ndarray | None:
    """What the output gets beside the update [O], None for nothing: ``lora_bias``, and how far a bias that
    was trained is from the base's."""
    parts = {part: getattr(layer.experts, part, None) for part in ("lora_bias", "module_bias")}
    total: Any = None
    if (own := parts["lora_bias"]) is not None:
        total = layer.experts.scale * own.data.reshape(-1).astype(np.float64)  # type: ignore[attr-defined]
    if (trained := parts["module_bias"]) is not None:
        module = dict(base.named_modules()).get(name)
        if module is None:
            raise ValueError(
                f"bias: expected 'none', got 'lora_only' of a base that is not here ({base.name!r}): only "
                "beside it can the trained biases be told from its own; polymoe export has it"
            )
        total = (0.0 if total is None else total) + (trained.data.reshape(-1) - module.bias)
    return None if total is None else np.asarray(total, np.float32)


def _mix(weights: np.ndarray, bank: np.ndarray) -> np.ndarray:
    """``sum_s weights[q, s] bank[s]`` [r, D], by block q of the columns."""
    S, r, D = bank.shape
    blocks = bank.reshape(S, r, len(weights), -1)
    return np.asarray(np.einsum("qs,srqd->rqd", weights, blocks)).reshape(r, D)
