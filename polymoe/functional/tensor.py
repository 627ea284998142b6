"""Factors made of small leaves: tensor_product, leaf_size."""

from __future__ import annotations

from typing import Any, NamedTuple

from polymoe import _core
from polymoe.functional._arrays import Array, like, real


def leaf_size(d: int, order: int) -> int:
    """Columns of a leaf: the smallest m with ``m**order >= d``, in integers (a floating-point root fails at
    5**5 = 3125).

    >>> leaf_size(2048, 2), leaf_size(2048, 4), leaf_size(3125, 5)
    (46, 7, 5)
    """
    for name, value in (("d", d), ("order", order)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    return next(m for m in range(1, d + 1) if m**order >= d)


class TensorProductSaved(NamedTuple):
    """What :func:`tensor_product` keeps: its inputs, not copied; products are made again."""

    leaves: Array
    order: int
    eps: float


class TensorProductGrads(NamedTuple):
    """Gradient of :func:`tensor_product`."""

    dleaves: Array


def tensor_product(leaves: Any, order: int, d: int, eps: float = 1e-5) -> tuple[Array, TensorProductSaved]:
    """Factors [J, r, d] whose rows are Kronecker products of ``order`` leaves, cut to the first d columns.

    A row of order 4 is ``LN(a0 x a1) x LN(a2 x a3)``, one of order 2 ``LN(a0 x a1)``, one of order 8
    ``LN(LN x LN) x LN(LN x LN)``. LN has mean 0 and (biased) variance 1 over all rows and columns of a
    component, without weight and bias, before the cut. Order 8 is our own continuation of the rule.

    Args:
        leaves: [J, r, order * m]: the leaves of a row side by side, each of ``m = leaf_size(d, order)``
            columns. As :func:`mix` takes them too, with one head for each leaf: mixing leaves by order.
        order: 2, 4 or 8.
        d: columns of the result.
        eps: added to the variance. Leaves start so small that it decides the scale: it is part of the method.

    Returns:
        [J, r, d] and what :func:`tensor_product_backward` needs. A wrong order or number of columns is a
        ValueError. TensorPoly, Su et al. 2024, arXiv 2405.16671.
    """
    leaves = real(leaves, "leaves")
    out = _core.empty((*leaves.shape[:2], max(d, 0)), leaves.dtype)
    _core.tensor_product_fwd(leaves, order, eps, out)
    return out, TensorProductSaved(leaves, order, eps)


def tensor_product_backward(saved: TensorProductSaved, dy: Any) -> TensorProductGrads:
    """``dleaves`` [J, r, order * m] for ``dy`` [J, r, d], by the formulas in ``csrc/kernels/tensor.h``."""
    leaves, order, eps = saved
    dleaves = _core.empty(leaves.shape, leaves.dtype)
    _core.tensor_product_bwd(like(leaves, dy), leaves, order, eps, dleaves)
    return TensorProductGrads(dleaves)
