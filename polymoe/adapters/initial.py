"""Initial values: uniform, keyed by seed and parameter name, so that they depend on neither the order
nor the number of layers."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np


def uniform(seed: int, name: str, shape: tuple[int, ...], bound: float, dtype: Any) -> np.ndarray:
    """U(-bound, bound) of any shape. The bits of Philox are the same in every NumPy; distributions need
    not be."""
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed: expected 0 <= seed < 2**64, got {seed}")
    digest = hashlib.blake2b(f"init\0{name}".encode(), digest_size=8).digest()
    key = np.array([seed, int.from_bytes(digest, "little")], dtype=np.uint64)
    bits = np.random.Philox(key=key).random_raw(int(np.prod(shape)))
    return (((bits >> np.uint64(11)) * 2.0**-52 - 1) * bound).astype(dtype).reshape(shape)
