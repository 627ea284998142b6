"""Mixing skills: one adapter factor per group from a bank of them."""

from __future__ import annotations

from typing import Any, NamedTuple

from polymoe import _core
from polymoe.functional._arrays import Array, like, real


class MixSaved(NamedTuple):
    """What :func:`mix` keeps: its inputs, not copied."""

    weights: Array
    bank: Array
    scale: float


class MixGrads(NamedTuple):
    """Gradients of :func:`mix`."""

    dweights: Array
    dbank: Array


def mix(weights: Any, bank: Any, scale: float = 1.0) -> tuple[Array, MixSaved]:
    """``out[g, r, d] = scale * sum_s weights[g, q(d), s] bank[s, r, d]``, where d lies in block q(d) of Q.

    Args:
        weights: [G, Q, S]; Q divides D.
        bank: [S, r, D].
        scale: of the result.

    Returns:
        [G, r, D] and what :func:`mix_backward` needs.
    """
    weights = real(weights, "weights")
    bank = like(weights, bank)
    if weights.ndim != 3 or bank.ndim != 3:
        raise ValueError(
            f"weights, bank: expected shapes (G, Q, S) and (S, r, D), got {weights.shape} and {bank.shape}"
        )
    out = _core.empty((len(weights), *bank.shape[1:]), weights.dtype)
    _core.mix_fwd(weights, bank, scale, out)
    return out, MixSaved(weights, bank, scale)


def mix_backward(saved: MixSaved, dy: Any) -> MixGrads:
    """Gradients of :func:`mix` for ``dy`` [G, r, D]."""
    weights, bank, scale = saved
    dweights, dbank = _core.empty(weights.shape, weights.dtype), _core.empty(bank.shape, weights.dtype)
    _core.mix_bwd(like(weights, dy), weights, bank, scale, dweights, dbank)
    return MixGrads(dweights, dbank)
