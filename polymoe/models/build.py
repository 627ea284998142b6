"""Frozen modules out of weights by name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from polymoe.functional import PackedWeight
from polymoe.nn import Embedding, LayerNorm, Linear, RMSNorm


def digest_of(array: np.ndarray) -> bytes:
    """SHA-256 of the values."""
    return hashlib.sha256(np.ascontiguousarray(array).data).digest()


class Builder:
    """Makes frozen modules out of a ``state``, each tensor converted to ``dtype`` when its module is made.

    ``dtype`` bfloat16 is that of the packed weights, which are nearly all there is; the model computes in
    float32 then, and holds its other weights so.

    A state maps names to arrays, or to whatever has a shape and a dtype and becomes an array when it is
    asked for one, so that files are read and decoded one tensor at a time.
    """

    def __init__(self, state: Mapping[str, Any], dtype: np.dtype[Any]) -> None:
        self.state, self.weight_dtype = state, dtype
        self.digests: dict[str, bytes] = {}  # of weights that are held in less than they were read in
        self.dtype = np.dtype(np.float32) if dtype == ml_dtypes.bfloat16 else dtype

    def array(self, name: str, copy: bool = True) -> np.ndarray:
        """A weight in the model's dtype, in memory of its own unless it is only read to be packed.

        ValueError for NaN or infinity."""
        stored = np.asarray(self.state[name])
        with np.errstate(all="ignore"):  # what overflows here is refused below
            array = np.require(stored, self.dtype, ["C", "ALIGNED"])  # mapped files need not be aligned
        if copy and np.may_share_memory(array, stored):
            array = array.copy()
        if not np.isfinite(array).all():
            raise ValueError(f"{name}: expected finite weights, got NaN or infinity")
        return array

    def packed(self, name: str) -> PackedWeight:
        """A weight [O, D], packed."""
        array = self.array(name, copy=False)
        if self.weight_dtype != self.dtype:
            self.digests[name] = digest_of(array)
        return PackedWeight(array, self.weight_dtype)

    def linear(self, name: str, bias: bool = True) -> Linear:
        """Out of ``name.weight`` and ``name.bias``."""
        return Linear(self.packed(name + ".weight"), self.array(name + ".bias") if bias else None)

    def layer_norm(self, name: str, eps: float) -> LayerNorm:
        """Out of ``name.weight`` and ``name.bias``."""
        return LayerNorm(self.array(name + ".weight"), self.array(name + ".bias"), eps)

    def rms_norm(self, name: str, eps: float) -> RMSNorm:
        """Out of ``name.weight``."""
        return RMSNorm(self.array(name + ".weight"), eps)

    def embedding(self, name: str) -> Embedding:
        """Out of ``name.weight``."""
        return Embedding(self.array(name + ".weight"))
