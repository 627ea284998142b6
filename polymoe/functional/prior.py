"""Priors on tables of logits: ibp_loss."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from polymoe import _core
from polymoe.functional._arrays import Array, like, real


class IbpLossSaved(NamedTuple):
    """What :func:`ibp_loss` keeps; every head's skills are columns."""

    logits: Array
    shape: tuple[int, ...]


class IbpLossGrads(NamedTuple):
    """Gradient of :func:`ibp_loss`."""

    dlogits: Array


def ibp_loss(logits: Any) -> tuple[Array, IbpLossSaved]:
    """Minus the log prior of the tasks' choices of skills under the Indian buffet process, a 0-d array.

        sum_h log K_h! - sum_j [log (T - m_j)! + log (m_j - 1)!]

    Task t uses column j where ``logits`` [T, S] (or [T, Q, S]: Q * S columns) is above 0, that is, where its
    sigmoid is above one half; ``m_j`` tasks use it, and ``K_h`` columns are used by just the same tasks.
    Columns that nobody uses are left out, and so is all that no gradient depends on. The gradient passes the
    threshold as if it were the sigmoid, ``p (1 - p) (digamma(T - m_j + 1) - digamma(m_j))``: columns used by
    more than half of the tasks are pushed up, the others down. Added to the loss for every table (with
    coefficient 1 in the paper). Ponti et al. 2022, arXiv 2202.13914.
    """
    logits = real(logits, "logits")
    if logits.ndim < 2:
        raise ValueError(f"logits: expected shape (T, S) or (T, Q, S), got {logits.shape}")
    table = logits.reshape(len(logits), math.prod(logits.shape[1:]))
    loss = _core.empty((1,), table.dtype)
    _core.ibp_loss_fwd(table, loss)
    return loss.reshape(()), IbpLossSaved(table, logits.shape)


def ibp_loss_backward(saved: IbpLossSaved, dy: Any) -> IbpLossGrads:
    """``dlogits`` in the shape of the logits for the scalar ``dy``."""
    table, shape = saved
    dlogits = _core.empty(table.shape, table.dtype)
    _core.ibp_loss_bwd(like(table, dy).reshape(-1), table, dlogits)
    return IbpLossGrads(dlogits.reshape(shape))
