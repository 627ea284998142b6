"""The same values in other shapes: concat, reshape."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from polymoe.functional._arrays import Array, like, real


class ConcatSaved(NamedTuple):
    """What :func:`concat` keeps: columns of a, and the shape of b."""

    columns: int
    shape: tuple[int, ...]


class ConcatGrads(NamedTuple):
    """Gradients of :func:`concat`."""

    da: Array
    db: Array


def concat(a: Any, b: Any) -> tuple[Array, ConcatSaved]:
    """Weights beside weights: ``a`` [G, Q, S] and ``b`` [G, P], the same for all heads -> [G, Q, S + P].

    Shapes that do not fit are a ValueError.
    """
    a = real(a, "a")
    b = like(a, b)
    if a.ndim != 3 or b.ndim != 2 or len(a) != len(b):
        raise ValueError(f"a, b: expected shapes (G, Q, S) and (G, P), got {a.shape} and {b.shape}")
    if a.dtype != b.dtype:
        raise TypeError(f"b: expected dtype {a.dtype}, got {b.dtype}")
    heads = np.broadcast_to(b[:, None], (*a.shape[:2], b.shape[1]))
    return np.concatenate([a, heads], axis=2), ConcatSaved(a.shape[2], b.shape)


def concat_backward(saved: ConcatSaved, dy: Any) -> ConcatGrads:
    """The parts of ``dy`` [G, Q, S + P]; that of b is summed over heads."""
    dy = real(dy, "dy")
    da, heads = np.ascontiguousarray(dy[..., : saved.columns]), dy[..., saved.columns :]
    db = np.zeros(saved.shape, dy.dtype)
    for q in range(dy.shape[1]):  # in order: the same bits everywhere
        db += heads[:, q]
    return ConcatGrads(da, db)


class ReshapeGrads(NamedTuple):
    """Gradient of :func:`reshape`."""

    dx: Array


def reshape(x: Any, shape: tuple[int, ...]) -> tuple[Array, tuple[int, ...]]:
    """``x`` in another shape of the same size, a view. Another size is a ValueError."""
    x = real(x)
    if np.prod(shape, dtype=np.int64) != x.size:
        raise ValueError(f"shape: expected one of size {x.size}, got {shape}")
    return x.reshape(shape), x.shape


def reshape_backward(saved: tuple[int, ...], dy: Any) -> ReshapeGrads:
    """``dy`` in the shape of x."""
    return ReshapeGrads(real(dy, "dy").reshape(saved))
