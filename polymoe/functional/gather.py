"""Rows by index and means of rows: embedding, mean_pool."""

from __future__ import annotations

from typing import Any, NamedTuple

from polymoe import _core
from polymoe.functional._arrays import Array, index, real


class EmbeddingSaved(NamedTuple):
    """What :func:`embedding` keeps; of the table only the number of rows."""

    ids: Array
    rows: int


class EmbeddingGrads(NamedTuple):
    """Gradient of :func:`embedding`."""

    dtable: Array


def embedding(ids: Any, table: Any) -> tuple[Array, EmbeddingSaved]:
    """Rows ``ids`` [N] of ``table`` [V, D]: [N, D]. Also takes the first token of every example:
    ``embedding(cu_seqlens[:-1], x)``.

    An id outside the table is an IndexError.
    """
    ids, table = index(ids, "ids"), real(table, "table")
    y = _core.empty(ids.shape + table.shape[1:], table.dtype)
    _core.embedding_fwd(ids, table, y)
    return y, EmbeddingSaved(ids, table.shape[0])


def embedding_backward(saved: EmbeddingSaved, dy: Any) -> EmbeddingGrads:
    """``dtable`` [V, D]: rows of ``dy`` added in the order of the tokens."""
    dy = real(dy, "dy")
    dtable = _core.empty((saved.rows, *dy.shape[1:]), dy.dtype)
    _core.embedding_bwd(saved.ids, dy, dtable)
    return EmbeddingGrads(dtable)


class MeanPoolSaved(NamedTuple):
    """What :func:`mean_pool` keeps."""

    cu_seqlens: Array
    shape: tuple[int, ...]


class MeanPoolGrads(NamedTuple):
    """Gradient of :func:`mean_pool`."""

    dx: Array


def mean_pool(x: Any, cu_seqlens: Any) -> tuple[Array, MeanPoolSaved]:
    """Mean over the tokens of every example: ``x`` [N, D], ``cu_seqlens`` [B+1] -> [B, D]; an empty example
    gives 0."""
    x, cu_seqlens = real(x), index(cu_seqlens, "cu_seqlens")
    y = _core.empty((max(cu_seqlens.size - 1, 0), *x.shape[1:]), x.dtype)
    _core.mean_pool_fwd(x, cu_seqlens, y)
    return y, MeanPoolSaved(cu_seqlens, x.shape)


def mean_pool_backward(saved: MeanPoolSaved, dy: Any) -> MeanPoolGrads:
    """``dx`` [N, D]: every token gets its example's share."""
    dy = real(dy, "dy")
    dx = _core.empty(saved.shape, dy.dtype)
    _core.mean_pool_bwd(dy, saved.cu_seqlens, dx)
    return MeanPoolGrads(dx)
