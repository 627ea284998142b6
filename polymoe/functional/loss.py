"""Losses, averaged over examples: cross_entropy, mse."""

from __future__ import annotations

from typing import Any, NamedTuple

from polymoe import _core
from polymoe.functional._arrays import Array, index, like, like_or_none, real


class CrossEntropySaved(NamedTuple):
    """What :func:`cross_entropy` keeps; ``per_example`` [B] is the loss of every example."""

    logits: Array
    labels: Array
    starts: Array | None
    ends: Array | None
    weights: Array | None
    per_example: Array
    lse: Array


class CrossEntropyGrads(NamedTuple):
    """Gradient of :func:`cross_entropy`; zero in columns outside a row's range."""

    dlogits: Array


def cross_entropy(
    logits: Any, labels: Any, starts: Any = None, ends: Any = None, weights: Any = None
) -> tuple[Array, CrossEntropySaved]:
    """Mean cross entropy of ``labels`` [B] under ``logits`` [B, C], a 0-d array.

    Row b is a softmax over the columns ``starts[b]`` to ``ends[b] - 1`` (its task's own labels; all columns
    when None), and ``labels[b]`` counts columns from 0: a label outside its range is a ValueError that names
    the row. ``weights`` [B] make it a weighted mean. The loss of no examples, or of weights that sum to 0, is
    0.
    """
    logits, labels = real(logits, "logits"), index(labels, "labels")
    weights = like_or_none(logits, weights)
    starts, ends = (None if v is None else index(v, n) for v, n in ((starts, "starts"), (ends, "ends")))
    loss, per_example, lse = (
        _core.empty(shape, logits.dtype) for shape in ((1,), labels.shape, labels.shape)
    )
    _core.cross_entropy_fwd(logits, labels, starts, ends, weights, loss, per_example, lse)
    return loss.reshape(()), CrossEntropySaved(logits, labels, starts, ends, weights, per_example, lse)


def cross_entropy_backward(saved: CrossEntropySaved, dy: Any) -> CrossEntropyGrads:
    """``dlogits`` [B, C] for the scalar ``dy``."""
    logits, labels, starts, ends, weights, _, lse = saved
    dlogits = _core.empty(logits.shape, logits.dtype)
    _core.cross_entropy_bwd(like(logits, dy).reshape(-1), logits, labels, starts, ends, weights, lse, dlogits)
    return CrossEntropyGrads(dlogits)


class MseSaved(NamedTuple):
    """What :func:`mse` keeps; ``per_example`` [B] is the squared error of every example."""

    predictions: Array
    targets: Array
    weights: Array | None
    per_example: Array


class MseGrads(NamedTuple):
    """Gradient of :func:`mse`."""

    dpredictions: Array


def mse(predictions: Any, targets: Any, weights: Any = None) -> tuple[Array, MseSaved]:
    """Mean of ``(predictions - targets)^2``, both [B], a 0-d array; with ``weights`` [B] a weighted mean, 0
    if they sum to 0."""
    predictions = real(predictions, "predictions")
    targets, weights = like(predictions, targets), like_or_none(predictions, weights)
    loss, per_example = (
        _core.empty((1,), predictions.dtype),
        _core.empty(predictions.shape, predictions.dtype),
    )
    _core.mse_fwd(predictions, targets, weights, loss, per_example)
    return loss.reshape(()), MseSaved(predictions, targets, weights, per_example)


def mse_backward(saved: MseSaved, dy: Any) -> MseGrads:
    """``dpredictions`` [B] for the scalar ``dy``; targets are constants."""
    predictions, targets, weights, _ = saved
    dpredictions = _core.empty(predictions.shape, predictions.dtype)
    _core.mse_bwd(like(predictions, dy).reshape(-1), predictions, targets, weights, dpredictions)
    return MseGrads(dpredictions)
