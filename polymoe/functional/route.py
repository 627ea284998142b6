"""Routing by task (task_router) and by token (softmax_router, topk_router), and the loss that keeps skills
in use (balance_loss)."""

from __future__ import annotations

from typing import Any, NamedTuple

from polymoe import _core
from polymoe.functional._arrays import Array, index, like, like_or_none, real

_GATES = ("sigmoid", "straight_through", "softmax", "l2")


class TaskRouterSaved(NamedTuple):
    """What :func:`task_router` keeps; ``gates`` [G, Q, S] are the gates before they are normalised."""

    task_ids: Array
    weights: Array
    gates: Array
    slopes: Array
    gate: str
    average_correction: bool
    tasks: int


class TaskRouterGrads(NamedTuple):
    """Gradient of :func:`task_router`; zero for tasks that no group has."""

    dlogits: Array


def task_router(
    logits: Any,
    task_ids: Any,
    noise: Any = None,
    temperature: float = 1.0,
    gate: str = "sigmoid",
    mask: Any = None,
    average_correction: bool = False,
) -> tuple[Array, TaskRouterSaved]:
    """Skill weights [G, Q, S] of groups with these ``task_ids`` [G], from the table ``logits`` [T, Q, S].

    ``w = a / (sum a + 1e-12)`` over the skills of a head, of gates ``a``:

    - "sigmoid": ``sigmoid((z + log u - log(1 - u)) / temperature)`` with uniform ``noise`` u [G, Q, S] in
      (0, 1); ``sigmoid(z)``, without temperature, when noise is None (Poly: Ponti et al. 2022, arXiv
      2202.13914; a row for each head, MHR: Caccia et al. 2022, arXiv 2211.03831).
    - "straight_through": that, rounded to 0 or 1 (one half to 0), with the gradient of what was rounded.
      Where no gate is open all weights are 0, and the gradient is that of the gates themselves.
    - "softmax": ``exp(z / temperature)``, without noise (ALTER).
    - "l2": z itself, without noise, divided by its Euclidean length instead of its sum.

    ``mask`` [G, Q, S] is multiplied to the gates before they are normalised: dropout, 0 or 1 / (1 - p).
    ``average_correction``: gates of the first two kinds times ``sqrt(Q / S)`` instead of divided by their
    sum. All but the sigmoid and softmax are options of the authors' mttl. A task id outside the table is an
    IndexError; a wrong gate, a temperature that is not positive, or noise or average_correction where the
    gate takes none is a ValueError.
    """
    if gate not in _GATES:
        raise ValueError(f"gate: expected one of {list(_GATES)}, got {gate!r}")
    if gate in ("softmax", "l2") and noise is not None:
        raise ValueError(f"noise: expected None (gate {gate!r} takes none), got an array")
    if gate in ("softmax", "l2") and average_correction:
        raise ValueError(f"average_correction: expected False (gate {gate!r} is normalised), got True")
    logits, task_ids = real(logits, "logits"), index(task_ids, "task_ids")
    noise, mask = like_or_none(logits, noise), like_or_none(logits, mask)
    weights, gates, slopes = (_core.empty(task_ids.shape + logits.shape[1:], logits.dtype) for _ in range(3))
    form = _GATES.index(gate), int(average_correction)
    _core.task_router_fwd(logits, task_ids, noise, mask, temperature, *form, weights, gates, slopes)
    return weights, TaskRouterSaved(
        task_ids, weights, gates, slopes, gate, average_correction, logits.shape[0]
    )


def task_router_backward(saved: TaskRouterSaved, dy: Any) -> TaskRouterGrads:
    """``dlogits`` [T, Q, S]: the groups of one task are added in order. Noise and mask are constants."""
    task_ids, weights, _, slopes, gate, average_correction, tasks = saved
    dlogits = _core.empty((tasks, *weights.shape[1:]), weights.dtype)
    form = _GATES.index(gate), int(average_correction)
    _core.task_router_bwd(like(weights, dy), task_ids, weights, slopes, *form, dlogits)
    return TaskRouterGrads(dlogits)


class SoftmaxRouterSaved(NamedTuple):
    """What :func:`softmax_router` keeps."""

    weights: Array
    temperature: float


class SoftmaxRouterGrads(NamedTuple):
    """Gradient of :func:`softmax_router`."""

    dlogits: Array


def softmax_router(logits: Any, temperature: float = 1.0) -> tuple[Array, SoftmaxRouterSaved]:
    """Weights [N, S] = softmax(``logits`` [N, S] / temperature), row by row; rows are tokens, examples or
    groups.

    A temperature that is not positive, or no column, is a ValueError.
    """
    logits = real(logits, "logits")
    weights = _core.empty(logits.shape, logits.dtype)
    _core.softmax_router_fwd(logits, temperature, weights)
    return weights, SoftmaxRouterSaved(weights, temperature)


def softmax_router_backward(saved: SoftmaxRouterSaved, dy: Any) -> SoftmaxRouterGrads:
    """``dlogits = w (dy - sum dy w) / temperature`` [N, S]."""
    dlogits = _core.empty(saved.weights.shape, saved.weights.dtype)
    _core.softmax_router_bwd(like(saved.weights, dy), *saved, dlogits)
    return SoftmaxRouterGrads(dlogits)


class TopkRouterSaved(NamedTuple):
    """What :func:`topk_router` keeps; ``ids`` [N, k] are the skills that the weights belong to."""

    weights: Array
    ids: Array
    skills: int


class TopkRouterGrads(NamedTuple):
    """Gradient of :func:`topk_router`; zero for skills that were not kept."""

    dlogits: Array


def topk_router(logits: Any, k: int) -> tuple[Array, TopkRouterSaved]:
    """Weights [N, k] of the k skills with the largest ``logits`` [N, S], largest first; ``saved.ids`` [N, k]
    int64 says which.

    They are the softmax of the kept logits, that is the softmax of all of them, cut and made to sum to 1
    again. Among equal logits the lower index is kept. Selection has no gradient, so for k = 1, where the
    weight is 1, there is none. Under a tape, :func:`polymoe.tape.topk_router` returns ``(weights, ids)``.

    ValueError unless 1 <= k <= S.
    """
    logits = real(logits, "logits")
    if logits.ndim == 2 and not 1 <= k <= logits.shape[1]:
        raise ValueError(f"k: expected 1 to {logits.shape[1]}, got {k}")
    weights, ids = (_core.empty((*logits.shape[:1], k), dtype) for dtype in (logits.dtype, "int64"))
    _core.topk_router_fwd(logits, weights, ids)
    return weights, TopkRouterSaved(weights, ids, logits.shape[1])


def topk_router_backward(saved: TopkRouterSaved, dy: Any) -> TopkRouterGrads:
    """``dlogits`` [N, S]: ``w (dy - sum dy w)`` for the kept skills, 0 for the others."""
    weights, ids, skills = saved
    dlogits = _core.empty((len(weights), skills), weights.dtype)
    _core.topk_router_bwd(like(weights, dy), weights, ids, dlogits)
    return TopkRouterGrads(dlogits)


class BalanceLossSaved(NamedTuple):
    """What :func:`balance_loss` keeps; ``fractions`` [S] is the share of choices that fell on each skill."""

    logits: Array
    fractions: Array


class BalanceLossGrads(NamedTuple):
    """Gradient of :func:`balance_loss`."""

    dlogits: Array


def balance_loss(logits: Any, ids: Any) -> tuple[Array, BalanceLossSaved]:
    """``S * sum_s f_s P_s``, a 0-d array: 1 when all skills are used alike, up to S when one is alone.

    ``f_s`` is the share of the choices ``ids`` [N, k] that fell on skill s (no gradient), ``P_s`` the mean
    over tokens of the softmax of all ``logits`` [N, S]. Fedus et al. 2021 (Switch Transformer), arXiv
    2101.03961. The loss of no tokens is 0. An id outside the skills is an IndexError.
    """
    logits, ids = real(logits, "logits"), index(ids, "ids")
    loss, fractions = (_core.empty(shape, logits.dtype) for shape in ((1,), logits.shape[1:]))
    _core.balance_loss_fwd(logits, ids, loss, fractions)
    return loss.reshape(()), BalanceLossSaved(logits, fractions)


def balance_loss_backward(saved: BalanceLossSaved, dy: Any) -> BalanceLossGrads:
    """``dlogits`` [N, S] for the scalar ``dy``: ``p (slope - sum slope p)`` with ``slope = dy S f / N``."""
    dlogits = _core.empty(saved.logits.shape, saved.logits.dtype)
    _core.balance_loss_bwd(like(saved.logits, dy).reshape(-1), *saved, dlogits)
    return BalanceLossGrads(dlogits)
