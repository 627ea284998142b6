"""Softmax attention over packed sequences."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from polymoe import _core
from polymoe.functional._arrays import Array, index, like, like_or_none, real


class AttentionSaved(NamedTuple):
    """What :func:`attention` keeps: its inputs and output, and ``lse`` [H, N], the log-sum-exp of every
    query's scores."""

    q: Array
    k: Array
    v: Array
    out: Array
    lse: Array
    cu_seqlens: Array
    cu_seqlens_k: Array
    key_lengths: Array | None
    n_heads: int
    n_kv_heads: int
    scale: float
    causal: bool
    position_bias: Array | None


class AttentionGrads(NamedTuple):
    """Gradients of :func:`attention`."""

    dq: Array
    dk: Array
    dv: Array


def attention(
    q: Any,
    k: Any,
    v: Any,
    cu_seqlens: Any,
    n_heads: int,
    scale: float | None = None,
    causal: bool = False,
    n_kv_heads: int | None = None,
    cu_seqlens_k: Any = None,
    key_lengths: Any = None,
    position_bias: Any = None,
) -> tuple[Array, AttentionSaved]:
    """``softmax(scale q k^T) v`` inside every example, head by head: ``q`` and the result are
    [N, H * head size], ``k`` and ``v`` [Nk, Hkv * head size].

    ``n_kv_heads``: Hkv, a divisor of H: H / Hkv neighbouring heads of ``q`` share a head of ``k`` and ``v``;
    H when None. ``scale`` is 1 / sqrt(head size) when None; ``causal``: a token sees itself and what comes
    before. The scores are never stored: backward computes them again.

    ``cu_seqlens_k`` [B + 1]: where every example's rows of ``k`` and ``v`` start, which may then be others
    than those of ``q`` (None: the same). ``key_lengths`` [B]: how many of them hold keys, the rest being room
    for later tokens, never read (None: all). With ``causal`` the queries of an example are its last tokens:
    new ones, against the keys of all so far.

    ``position_bias`` [H, 2 W + 1]: what is added to a score (after the scale) by how far the key stands
    behind the query, column 0 for W tokens before it or more, column W for the query's own place. The queries
    stand where causal ones do: the last at the place of the last key. It gets no gradient.

    ValueError for shapes and offsets that do not fit, for more keys than rows, and for a query without a key
    (causal: without its own).

    Vaswani et al. 2017, arXiv 1706.03762; shared heads: Ainslie et al. 2023, arXiv 2305.13245; the bias:
    Raffel et al. 2020, arXiv 1910.10683; recomputation: Dao et al. 2022, arXiv 2205.14135.
    """
    q, cu_seqlens = real(q, "q"), index(cu_seqlens, "cu_seqlens")
    cu_seqlens_k = cu_seqlens if cu_seqlens_k is None else index(cu_seqlens_k, "cu_seqlens_k")
    key_lengths = None if key_lengths is None else index(key_lengths, "key_lengths")
    k, v = like(q, k), like(q, v)
    bias = like_or_none(q, position_bias)
    if scale is None:
        scale = 1 / math.sqrt(max(q.shape[-1] // n_heads, 1)) if n_heads > 0 else 1.0
    n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
    out, lse = _core.empty(q.shape, q.dtype), _core.empty((max(n_heads, 0), *q.shape[:1]), q.dtype)
    settings = (cu_seqlens, cu_seqlens_k, key_lengths, n_heads, n_kv_heads, scale, causal, bias)
    _core.attention_fwd(q, k, v, *settings, out, lse)
    return out, AttentionSaved(q, k, v, out, lse, *settings)


def attention_backward(saved: AttentionSaved, dy: Any) -> AttentionGrads:
    """``dq`` [N, H * head size]; ``dk``, ``dv`` [Nk, Hkv * head size], summed over their heads of q."""
    q, k, v, out, lse = saved[:5]
    dq, dk, dv = (_core.empty(x.shape, x.dtype) for x in (q, k, v))
    _core.attention_bwd(like(q, dy), q, k, v, out, lse, *saved[5:], dq, dk, dv)
    return AttentionGrads(dq, dk, dv)
