"""Rotary positions."""

from __future__ import annotations

from typing import Any, NamedTuple

from polymoe import _core
from polymoe.functional._arrays import Array, index, like, real


class RopeSaved(NamedTuple):
    """What :func:`rope` keeps: its angles, not its input."""

    cos: Array
    sin: Array
    positions: Array


class RopeGrads(NamedTuple):
    """Gradient of :func:`rope`."""

    dx: Array


def rope(x: Any, cos: Any, sin: Any, positions: Any) -> tuple[Array, RopeSaved]:
    """The heads of ``x`` [N, H * d] turned by the angles of their tokens' positions: in each head column i
    and column i + d/2 are the two coordinates of a point (Hugging Face's order).

    ``cos``, ``sin`` [P, d/2]: of the angles at each of P positions; ``positions`` [N]: the row of a token.
    IndexError for a position outside of the tables. Su et al. 2021, arXiv 2104.09864.
    """
    x, positions = real(x), index(positions, "positions")
    saved = RopeSaved(like(x, cos), like(x, sin), positions)
    y = _core.empty(x.shape, x.dtype)
    _core.rope(x, *saved, False, y)
    return y, saved


def rope_backward(saved: RopeSaved, dy: Any) -> RopeGrads:
    """``dy`` turned back."""
    dy = like(saved.cos, dy)
    dx = _core.empty(dy.shape, dy.dtype)
    _core.rope(dy, *saved, True, dx)
    return RopeGrads(dx)
