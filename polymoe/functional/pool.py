"""Pooling the tokens of every example by a learned query: attention_pool. (Their mean: mean_pool.)"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from polymoe import _core
from polymoe.functional._arrays import Array, index, like, real


class AttentionPoolSaved(NamedTuple):
    """What :func:`attention_pool` keeps; ``weights`` [N] sum to 1 over every example."""

    x: Array
    query: Array
    cu_seqlens: Array
    weights: Array
    scale: float


class AttentionPoolGrads(NamedTuple):
    """Gradients of :func:`attention_pool`."""

    dx: Array
    dquery: Array


def attention_pool(
    x: Any, query: Any, cu_seqlens: Any, scale: float | None = None
) -> tuple[Array, AttentionPoolSaved]:
    """Sum of every example's tokens by ``softmax(scale * x query)``: ``x`` [N, D], ``query`` [D],
    ``cu_seqlens`` [B+1] -> [B, D].

    ``scale`` None is 1/sqrt(D). A query of zeros gives the mean; an empty example gives 0.
    """
    x, cu_seqlens = real(x), index(cu_seqlens, "cu_seqlens")
    query = like(x, query)
    scale = 1 / math.sqrt(max(query.size, 1)) if scale is None else scale
    y = _core.empty((max(cu_seqlens.size - 1, 0), *x.shape[1:]), x.dtype)
    weights = _core.empty(x.shape[:1], x.dtype)
    _core.attention_pool_fwd(x, query, cu_seqlens, scale, y, weights)
    return y, AttentionPoolSaved(x, query, cu_seqlens, weights, scale)


def attention_pool_backward(saved: AttentionPoolSaved, dy: Any) -> AttentionPoolGrads:
    """``dx`` [N, D] and ``dquery`` [D], summed example by example."""
    x, query, cu_seqlens, weights, scale = saved
    dx, dquery = (_core.empty(a.shape, a.dtype) for a in (x, query))
    _core.attention_pool_bwd(like(x, dy), x, query, cu_seqlens, weights, scale, dx, dquery)
    return AttentionPoolGrads(dx, dquery)
