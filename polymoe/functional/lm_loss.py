"""The loss of a language model over its vocabulary, a few tokens at a time."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from polymoe import _core
from polymoe.functional._arrays import Array, index, like, like_or_none, real
from polymoe.functional.linear import NO_TERM, linear
from polymoe.functional.loss import cross_entropy, cross_entropy_backward
from polymoe.functional.packed import PackedWeight

TOKENS = 128
"""Tokens whose logits are there at once, [TOKENS, V]: a chunk of the products. With half as many the head is
read twice as often (8 % more time in bfloat16), with twice as many nothing is gained."""


class LmLossSaved(NamedTuple):
    """What :func:`lm_loss` keeps: its gradient already, and ``per_token`` [N], the loss of every token."""

    dx: Array | None
    per_token: Array


class LmLossGrads(NamedTuple):
    """Gradient of :func:`lm_loss`."""

    dx: Array


def lm_loss(
    x: Any, weight: Any, labels: Any, weights: Any = None, gradient: bool = True
) -> tuple[Array, LmLossSaved]:
    """Mean cross entropy of ``labels`` [N] under the logits ``x weight^T``, a 0-d array; all N x V logits are
    never there together.

    ``x`` [N, D]: hidden states; ``weight`` [V, D], frozen: a :class:`PackedWeight`, or an array that is
    packed for this call alone. ``weights`` [N] make it a weighted mean; the loss of no tokens, or of weights
    that sum to 0, is 0. ``gradient``: that of x is made here, chunk by chunk, so that no product is made
    twice; without it there is no backward.

    ValueError for shapes that do not fit and a label outside of the vocabulary, TypeError for another dtype
    than that of x.
    """
    x, labels = real(x), index(labels, "labels")
    weights = like_or_none(x, weights)
    if not isinstance(weight, PackedWeight):
        weight = PackedWeight(like(x, weight))
    if x.ndim != 2 or labels.shape != x.shape[:1]:
        raise ValueError(f"labels: expected one for each row of x {x.shape}, got shape {labels.shape}")
    if weights is not None and weights.shape != labels.shape:
        raise ValueError(f"weights: expected shape {labels.shape}, got {weights.shape}")
    if labels.size and not 0 <= labels.min() <= labels.max() < weight.shape[0]:
        bad = labels[(labels < 0) | (labels >= weight.shape[0])][0]
        raise ValueError(f"labels: expected 0 to {weight.shape[0] - 1}, got {bad}")
    per_token, dx = _core.empty(labels.shape, x.dtype), _core.empty(x.shape, x.dtype) if gradient else None
    w = np.ones(len(labels)) if weights is None else weights.astype(np.float64)
    total = float(w.sum())
    panels = weight.transpose() if gradient else None
    for start in range(0, len(labels), TOKENS):
        rows = slice(start, start + TOKENS)
        logits, _ = linear(x[rows], weight)
        _, saved = cross_entropy(logits, labels[rows], None, None, w[rows].astype(x.dtype))
        per_token[rows] = saved.per_example
        if dx is not None:
            share = float(w[rows].sum()) / total if total else 0.0
            dlogits = cross_entropy_backward(saved, share).dlogits
            layer = (dlogits, panels, None, *NO_TERM, None, None, None)
            _core.linear_bwd(None, 0, None, None, dx[rows], None, layer)
    loss = float((w * per_token).sum()) / total if total else 0.0
    return np.asarray(loss, x.dtype), LmLossSaved(dx, per_token)


def lm_loss_backward(saved: LmLossSaved, dy: Any) -> LmLossGrads:
    """``dx`` [N, D] for the scalar ``dy``; ValueError when the gradient was not asked for."""
    if saved.dx is None:
        raise ValueError("gradient: expected True in the forward, got False")
    return LmLossGrads(saved.dx * like(saved.dx, dy))
