"""From an order of examples to batches of similar lengths, within a budget of tokens, examples or both."""

from __future__ import annotations

from operator import index

import numpy as np

from polymoe.data.order import integers, shuffled

POOL = 64
"""Batches that are formed together: more gives more similar lengths, fewer stay closer to the order."""


def pack(
    order: np.ndarray,
    lengths: np.ndarray,
    *,
    max_tokens: int | None = None,
    batch_size: int | None = None,
    seed: int,
    epoch: int,
    pool: int = POOL,
) -> list[np.ndarray]:
    """Batches of examples, each of them [B] int64, which together hold every entry of ``order`` once.

    ``lengths`` are tokens per example. The order is cut into pools of about ``pool`` batches; each pool is
    sorted by length, cut by :func:`cut_batches`, and its batches come in a random order that depends on
    (seed, epoch) and the pool.
    """
    order, lengths = integers("order", order), integers("lengths", lengths)
    _check_budget(max_tokens, batch_size, pool)
    # An example takes 1 / batch_size or length / max_tokens of a batch, whichever is more. In whole numbers:
    examples, tokens = batch_size or 1, max_tokens or 1
    share = np.maximum(lengths[order] * (examples if max_tokens else 0), tokens if batch_size else 0)
    before = np.cumsum(share) - share
    pools = np.split(order, np.flatnonzero(np.diff(before // (pool * examples * tokens))) + 1)
    batches: list[np.ndarray] = []
    for i, members in enumerate(pools):
        members = members[np.argsort(lengths[members], kind="stable")]
        cut = cut_batches(members, lengths, max_tokens=max_tokens, batch_size=batch_size)
        batches += [cut[b] for b in shuffled(len(cut), seed, "batches", epoch, i)]
    return batches


def cut_batches(
    order: np.ndarray, lengths: np.ndarray, *, max_tokens: int | None = None, batch_size: int | None = None
) -> list[np.ndarray]:
    """Cut an order into batches, one after the other, each as large as the limits allow.

    An example longer than the budget is a batch of its own. ValueError without any limit.
    """
    order, lengths = integers("order", order), integers("lengths", lengths)
    _check_budget(max_tokens, batch_size)
    ends = np.cumsum(lengths[order])
    batches, start, used = [], 0, 0
    while start < len(order):
        stop = len(order)
        if max_tokens is not None:
            stop = max(start + 1, int(np.searchsorted(ends, used + max_tokens, side="right")))
        if batch_size is not None:
            stop = min(stop, start + batch_size)
        batches.append(order[start:stop])
        start, used = stop, int(ends[stop - 1])
    return batches


def shortest_first(
    lengths: np.ndarray, *, max_tokens: int | None = None, batch_size: int | None = None
) -> list[np.ndarray]:
    """Batches of examples of similar length, from the shortest to the longest, where the order is free."""
    return cut_batches(
        np.argsort(lengths, kind="stable"), lengths, max_tokens=max_tokens, batch_size=batch_size
    )


def _check_budget(max_tokens: int | None, batch_size: int | None, pool: int = POOL) -> None:
    if max_tokens is None and batch_size is None:
        raise ValueError("max_tokens, batch_size: expected at least one of them, got None for both")
    for name, value in (("max_tokens", max_tokens), ("batch_size", batch_size), ("pool", pool)):
        if value is not None and index(value) < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
