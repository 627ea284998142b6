"""Random numbers that depend on what they are for, and on nothing else.

Every number is a function of the seed, the stream's name, the (micro-)step, the layer and the example's id in
its data set. Threads, ranks, the order of a batch and resuming cannot change it, and two draws in one layer
(two streams) never correlate.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from typing import Any

from polymoe import _core
from polymoe.functional._arrays import Array, index


@lru_cache(maxsize=4096)
def _key(stream: str, layer: str) -> int:
    return int.from_bytes(blake2b(f"{stream}\0{layer}".encode(), digest_size=8).digest(), "little")


def uniform(
    seed: int, stream: str, step: int, layer: str, example_ids: Any, n: int, dtype: Any = "float32"
) -> Array:
    """Uniform numbers in (0, 1), never 0 or 1: [B, n] for ``example_ids`` [B].

    Philox4x64-10 with the key (``seed``, a hash of stream and layer) and the counter (block, example id,
    step, 0); each 64-bit output gives two numbers of 23 bits, which float32 holds exactly. float64 gives the
    same numbers.
    """
    example_ids = index(example_ids, "example_ids")
    if n < 0:
        raise ValueError(f"n: expected 0 or more, got {n}")
    out = _core.empty((*example_ids.shape, n), dtype)
    _core.uniform(seed, _key(stream, layer), step, example_ids, out)
    return out
