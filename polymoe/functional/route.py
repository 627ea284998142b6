"""Routing by task: task_router."""

from __future__ import annotations

from typing import Any, NamedTuple

from polymoe import _core
from polymoe.functional._arrays import Array, index, like, like_or_none, real


class TaskRouterSaved(NamedTuple):
    """What :func:`task_router` keeps; ``temperature`` is 1 where there was no noise."""

    task_ids: Array
    weights: Array
    gates: Array
    temperature: float
    tasks: int


class TaskRouterGrads(NamedTuple):
    """Gradient of :func:`task_router`; zero for tasks that no group has."""

    dlogits: Array


def task_router(
    logits: Any, task_ids: Any, noise: Any = None, temperature: float = 1.0, gate: str = "sigmoid"
) -> tuple[Array, TaskRouterSaved]:
    """Skill weights [G, Q, S] of groups with these ``task_ids`` [G], from the table ``logits`` [T, Q, S].

    ``w = s / (sum s + 1e-12)`` over the skills of a head, where ``s = sigmoid((z + log u - log(1 - u)) /
    temperature)`` with uniform ``noise`` u [G, Q, S] in (0, 1) and ``s = sigmoid(z)``, without temperature,
    when noise is None. A task id outside the table is an IndexError. Ponti et al. 2023 (Poly), arXiv
    2202.13914; heads: Caccia et al. 2023 (MHR), arXiv 2211.03831.
    """
    if gate != "sigmoid":
        raise ValueError(f"gate: expected 'sigmoid', got {gate!r}")
    logits, task_ids = real(logits, "logits"), index(task_ids, "task_ids")
    noise = like_or_none(logits, noise)
    weights, gates = (_core.empty(task_ids.shape + logits.shape[1:], logits.dtype) for _ in range(2))
    _core.task_router_fwd(logits, task_ids, noise, temperature, weights, gates)
    return weights, TaskRouterSaved(
        task_ids, weights, gates, 1.0 if noise is None else temperature, logits.shape[0]
    )


def task_router_backward(saved: TaskRouterSaved, dy: Any) -> TaskRouterGrads:
    """``dlogits`` [T, Q, S]: the groups of one task are added in order."""
    task_ids, weights, gates, temperature, tasks = saved
    dlogits = _core.empty((tasks, *weights.shape[1:]), weights.dtype)
    _core.task_router_bwd(like(weights, dy), task_ids, weights, gates, temperature, dlogits)
    return TaskRouterGrads(dlogits)
