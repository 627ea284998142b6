"""Random orders that depend on a key alone: not on NumPy's version, the platform, or earlier draws."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np


def random_bits(n: int, *key: str | int) -> np.ndarray:
    """[n] uint64, the raw stream of NumPy's Philox: NumPy keeps it as it is, unlike its distributions."""
    digest = blake2b("\0".join(map(str, key)).encode(), digest_size=16).digest()
    bits = np.random.Philox(key=np.frombuffer(digest, dtype="<u8").astype(np.uint64)).random_raw(n)
    return np.asarray(bits, dtype=np.uint64)


def shuffled(n: int, *key: str | int) -> np.ndarray:
    """[n] int64, a random order of 0 .. n-1 for a key such as ``(seed, "what for", epoch)``.

    >>> bool((shuffled(5, 0, "doctest") == shuffled(5, 0, "doctest")).all())
    True
    """
    return np.argsort(random_bits(n, *key), kind="stable").astype(np.int64, copy=False)


def integers(name: str, values: np.ndarray) -> np.ndarray:
    """``values`` as [n] int64; TypeError for another shape or for anything that is no integer."""
    array: np.ndarray = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise TypeError(f"{name}: expected a row of integers, got shape {array.shape} of dtype {array.dtype}")
    return array.astype(np.int64, copy=False)
