"""Products with whole experts whose weights are trainable: feed-forward and bottleneck experts."""

from __future__ import annotations

from typing import Any, NamedTuple

from polymoe import _core
from polymoe.functional._arrays import Array, index, like, like_or_none, real, wants


class ExpertDenseSaved(NamedTuple):
    """What :func:`expert_dense` keeps: its inputs, not copied."""

    x: Array
    weight: Array
    bias: Array | None
    ids: Array
    weights: Array | None
    adapter_ids: Array | None
    cu_seqlens: Array | None


class ExpertDenseGrads(NamedTuple):
    """Gradients of :func:`expert_dense`; None where there is none."""

    dx: Array | None
    dweight: Array | None
    dbias: Array | None
    dweights: Array | None


def expert_dense(
    x: Any,
    weight: Any,
    bias: Any,
    ids: Any,
    weights: Any = None,
    adapter_ids: Any = None,
    cu_seqlens: Any = None,
) -> tuple[Array, ExpertDenseSaved]:
    """``y[n, i] = x[n(, i)] weight[e]^T + bias[e]`` with e = ids[g, i] of the group g of n's example; or with
    ``weights`` their sum ``y[n] = sum_i weights[g, i] (x[n(, i)] weight[e]^T + bias[e])``.

    Two of them with an activation between are a mixture of feed-forwards: up without weights, down with them
    (Xie et al. 2023, ALTER, arXiv 2309.11042). Weights of examples: one group per example.

    Args:
        x: [N, D], one input for all experts of a token; or [N, K, D], one for each.
        weight: [S, O, D], trainable (those in use are packed for each call).
        bias: [S, O] or None.
        ids: [G, K] integers, the experts of every group, all different. No other is computed or read.
        weights: [G, K], or None: what the experts make stays apart.
        adapter_ids: [B], the group of every example. None: group 0 for all.
        cu_seqlens: [B + 1], where every example starts, and N. None: one example.

    Returns:
        y [N, K, O], with weights [N, O], and what :func:`expert_dense_backward` needs. A token gives the same
        bits in any batch.

    Raises:
        TypeError: an array of another dtype than x.
        ValueError: shapes that do not fit, wrong offsets, an expert twice in a row of ids.
        IndexError: an adapter id without a group, an id without an expert.
    """
    x, ids = real(x), index(ids, "ids")
    weight, bias, weights = like(x, weight), like_or_none(x, bias), like_or_none(x, weights)
    adapter_ids, cu_seqlens = (
        None if a is None else index(a, name)
        for a, name in ((adapter_ids, "adapter_ids"), (cu_seqlens, "cu_seqlens"))
    )
    choices = ids.shape[1:] if weights is None else ()
    y = _core.empty((*x.shape[:1], *choices, *weight.shape[1:2]), x.dtype)
    saved = ExpertDenseSaved(x, weight, bias, ids, weights, adapter_ids, cu_seqlens)
    _core.expert_dense_fwd(*saved, y)
    return y, saved


def expert_dense_backward(
    saved: ExpertDenseSaved, dy: Any, needs: set[str] | None = None
) -> ExpertDenseGrads:
    """Gradients of :func:`expert_dense` for ``dy`` in the shape of y; only those of the arguments in
    ``needs``.

    With ``u[n, i] = dy[n(, i)] weight[e]`` and w = 1 without weights: ``dx[n, i] = w[g, i] u[n, i]``, summed
    over i where x is; ``dweight[e] = sum_{n, i} w[g, i] dy[n(, i)]^T x[n(, i)]`` and ``dbias[e]`` likewise, 0
    for experts that no token uses; ``dweights[g, i] = sum_n u[n, i] . x[n(, i)] + dy[n] . bias[e]``.
    """
    x, weight, bias, _, weights = saved[:5]
    dy = like(x, dy)

    def empty(name: str, a: Array | None) -> Array | None:
        return _core.empty(a.shape, a.dtype) if a is not None and wants(needs, name) else None

    grads = ExpertDenseGrads(
        empty("x", x), empty("weight", weight), empty("bias", bias), empty("weights", weights)
    )
    _core.expert_dense_bwd(dy, *saved, *grads)
    return grads
