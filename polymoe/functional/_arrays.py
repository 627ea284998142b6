"""What all operations share: how arguments become arrays.

Conversion is kind (lists, other memory orders, smaller integer types) but never hides a loss: a float array
of another precision than ``x`` is refused. The checks of dtype and shape themselves are made by
``polymoe._core``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


INDEX = np.dtype(np.int64)
REAL = np.dtype(np.float32), np.dtype(np.float64)


def real(x: Any, name: str = "x") -> Array:
    """``x`` as a C-contiguous array in its own precision; lists of numbers are float64, other dtypes a
    TypeError."""
    a = np.asarray(x, order="C")
    if a.dtype not in REAL:
        raise TypeError(f"{name}: expected dtype float32 or float64, got {a.dtype}")
    return a


def like(x: Array, value: Any) -> Array:
    """``value`` as a C-contiguous array; numbers and lists take the dtype of ``x``, float arrays keep theirs
    (and are checked later)."""
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return np.asarray(value, order="C")
    return np.asarray(value, dtype=x.dtype, order="C")


def like_or_none(x: Array, value: Any) -> Array | None:
    """:func:`like`, or None for None."""
    return None if value is None else like(x, value)


def index(value: Any, name: str) -> Array:
    """``value`` as a C-contiguous int64 array; anything but integers is a TypeError."""
    a = np.asarray(value, order="C")
    if a.dtype is INDEX:
        return a
    if a.size == 0 and not isinstance(value, np.ndarray):
        a = a.astype(np.int64)
    if a.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got dtype {a.dtype}")
    return a.astype(np.int64, copy=False)


def index_or_none(value: Any, name: str) -> Array | None:
    """:func:`index`, or None for None."""
    return None if value is None else index(value, name)


def wants(needs: set[str] | None, name: str) -> bool:
    """Whether the gradient of the argument ``name`` is wanted; ``needs`` None means all."""
    return needs is None or name in needs
