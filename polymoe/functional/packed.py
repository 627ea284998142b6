"""Frozen weights and factors in the layout that the products read."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from polymoe import _core
from polymoe.functional._arrays import Array, index, real

PANEL_BYTES = 64
BFLOAT16, BITS = np.dtype(ml_dtypes.bfloat16), np.dtype(np.uint16)
BFLOAT16_COLUMNS = 16  # of a panel, whatever the dtype of x


def _empty_panels(n_out: int, n_in: int, dtype: np.dtype[Any]) -> Array:
    if dtype == BFLOAT16:
        return _core.empty((-(-n_out // BFLOAT16_COLUMNS), -(-n_in // 2), 2 * BFLOAT16_COLUMNS), BITS)
    width = PANEL_BYTES // dtype.itemsize
    return _core.empty((-(-n_out // width), n_in, width), dtype)


def pack(weight: Array, transpose: bool = False) -> Array:
    """Panels of ``weight`` [O, D], or the transpose of [D, O]: [ceil(O/w), D, w], w columns are 64 bytes; of
    bfloat16 [ceil(O/16), ceil(D/2), 32] (uint16), two rows in pairs, and never of the transpose."""
    n_out, n_in = weight.shape[::-1] if transpose else weight.shape
    panels = _empty_panels(n_out, n_in, weight.dtype)
    _core.pack(weight.view(BITS) if weight.dtype == BFLOAT16 else weight, transpose, panels)
    return panels


class PackedWeight:
    """A frozen weight [O, D] in the layout that the products read.

    The layout is the same for every instruction set. Safe to share between threads: it never changes.

    bfloat16 takes half the bytes. Products with float32 arrays sum in float32; where the CPU multiplies pairs
    of bfloat16 (instruction set "avx512bf16"), ``x`` and ``dy`` are rounded to it for the product, which is
    then about twice as fast. The low-rank term and its gradients stay in float32.

    Args:
        weight: [O, D], float32, float64 or bfloat16, copied. Both extents at least 1.
        dtype: what it is converted to; None: its own. Rounds to nearest, ties to even.

    Raises:
        TypeError: another dtype.
        ValueError: not two-dimensional, or empty.
    """

    def __init__(self, weight: Any, dtype: Any = None) -> None:
        weight = np.asarray(weight, order="C")
        dtype = weight.dtype if dtype is None else np.dtype(dtype)
        for name, given in (("weight", weight.dtype), ("dtype", dtype)):
            if given not in (np.float32, np.float64, BFLOAT16):
                raise TypeError(f"{name}: expected dtype float32, float64 or bfloat16, got {given}")
        weight = weight.astype(dtype, copy=False)
        if weight.ndim != 2 or weight.size == 0:
            raise ValueError(f"weight: expected shape (O, D) with both at least 1, got {weight.shape}")
        self.shape: tuple[int, int] = weight.shape
        self.dtype: np.dtype[Any] = weight.dtype
        self.panels: Array = pack(weight)

    @property
    def compute_dtype(self) -> np.dtype[Any]:
        """Of the arrays that go with it: float32 for a bfloat16 weight, else its own."""
        return np.dtype(np.float32) if self.dtype == BFLOAT16 else self.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the panels."""
        return self.panels.nbytes

    def transpose(self) -> Array:
        """Panels of the transpose [D, O], made anew: gradients of the input need them, for one product. That
        takes a fiftieth of the product with 1,024 tokens; keeping them would take as much as the weight."""
        panels = _empty_panels(*self.shape[::-1], self.dtype)
        _core.transpose(self.panels, *self.shape, panels)
        return panels

    def unpack(self) -> Array:
        """A copy of the weight [O, D], bit for bit."""
        n_out, n_in = self.shape
        panels = self.panels
        if self.dtype == BFLOAT16:
            pairs = panels.view(BFLOAT16).reshape(*panels.shape[:2], BFLOAT16_COLUMNS, 2)
            panels = pairs.transpose(0, 1, 3, 2).reshape(len(pairs), -1, BFLOAT16_COLUMNS)
        rows = panels.transpose(0, 2, 1).reshape(-1, panels.shape[1])
        return np.ascontiguousarray(rows[:n_out, :n_in])

    def rows(self, ids: Any) -> Array:
        """A copy of the rows ``ids`` [N]: [N, D], bit for bit; bfloat16 as float32. IndexError for an id
        outside of 0 .. O-1."""
        ids = index(ids, "ids")
        if ids.size and (ids.min() < 0 or ids.max() >= self.shape[0]):
            raise IndexError(f"ids: expected values from 0 to {self.shape[0] - 1}, got others")
        if self.dtype == BFLOAT16:
            pairs = self.panels.view(BFLOAT16).reshape(*self.panels.shape[:2], BFLOAT16_COLUMNS, 2)
            picked = pairs[ids // BFLOAT16_COLUMNS, :, ids % BFLOAT16_COLUMNS]
            rows: Array = picked.reshape(len(ids), -1)[:, : self.shape[1]].astype(np.float32)
            return rows
        width = self.panels.shape[2]
        return self.panels[ids // width, :, ids % width]

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedWeight:
        """Itself: it never changes, so copies of a model share it."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedWeight, (self.unpack(),)

    def __repr__(self) -> str:
        return f"PackedWeight(shape={self.shape}, dtype={self.dtype})"


class PackedFactor:
    """A factor [G, r, D] of the pairs of groups in the layout that :func:`linear` reads, for many calls: each
    call packs what it gets as an array. Its gradient is not asked for.

    Raises TypeError for another dtype than float32 and float64, ValueError for another shape.
    """

    def __init__(self, factor: Any) -> None:
        self.factor = real(factor)
        if self.factor.ndim != 3:
            raise ValueError(f"factor: expected shape (G, r, D), got {self.factor.shape}")
        self._isa, self._panels = "", self.factor

    @property
    def panels(self) -> Array:
        """[G, r in whole panels, D], of the instruction set that is in use."""
        isa = _core.get_isa()
        if isa != self._isa:
            width = PANEL_BYTES // self.factor.itemsize
            n_groups, r, n_in = self.factor.shape
            panels = _core.empty((n_groups, -(-r // width) * width, n_in), self.factor.dtype)
            _core.factor_pack(self.factor, panels)
            self._panels, self._isa = panels, isa  # in this order: other threads may look
        return self._panels
