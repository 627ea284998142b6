"""The product with a trainable weight: heads, and score matrices."""

from __future__ import annotations

from typing import Any, NamedTuple

from polymoe import _core
from polymoe.functional._arrays import Array, like, like_or_none, real, wants
from polymoe.functional.linear import NO_TERM
from polymoe.functional.packed import pack


class DenseSaved(NamedTuple):
    """What :func:`dense` keeps: its inputs, not copied."""

    x: Array
    weight: Array
    bias: Array | None


class DenseGrads(NamedTuple):
    """Gradients of :func:`dense`; None where there is none."""

    dx: Array | None
    dweight: Array | None
    dbias: Array | None


def dense(x: Any, weight: Any, bias: Any = None) -> tuple[Array, DenseSaved]:
    """``y = x weight^T + bias`` for x [N, D], a trainable weight [O, D] (packed for each call) and bias [O].

    Raises:
        TypeError: an array of another dtype than x.
        ValueError: shapes that do not fit.
    """
    x = real(x)
    weight, bias = like(x, weight), like_or_none(x, bias)
    if weight.ndim != 2:
        raise ValueError(f"weight: expected shape (O, D), got {weight.shape}")
    y = _core.empty((*x.shape[:1], len(weight)), x.dtype)
    _core.linear_fwd(x, 0, None, (pack(weight), bias, *NO_TERM, None, y, None))
    return y, DenseSaved(x, weight, bias)


def dense_backward(saved: DenseSaved, dy: Any, needs: set[str] | None = None) -> DenseGrads:
    """``dx = dy weight``, ``dweight = dy^T x``, ``dbias`` the sum of dy over tokens; those in ``needs``."""
    x, weight, bias = saved
    dy = like(x, dy)

    def empty(name: str, a: Array | None) -> Array | None:
        return _core.empty(a.shape, a.dtype) if a is not None and wants(needs, name) else None

    grads = DenseGrads(empty("x", x), empty("weight", weight), empty("bias", bias))
    if grads.dx is not None:
        panels = pack(weight, transpose=True)
        _core.linear_bwd(None, 0, None, None, grads.dx, None, (dy, panels, None, *NO_TERM, None, None, None))
    _core.dense_bwd_weight(dy, x, grads.dweight, grads.dbias)
    return grads
