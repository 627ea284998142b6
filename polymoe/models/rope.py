"""Angles of the rotary positions: the frequencies of a head's pairs of columns, and the scalings of them
that stretch a model's context.

    frequency_i = theta^(-2i/d) / divisor_i, i < d/2        angle[p, i] = p frequency_i

A scaling is what divides: nothing (default), one factor (linear: Chen et al. 2023, arXiv 2306.15595), or a
factor for slow frequencies, 1 for fast ones and a blend between (llama3: Dubey et al. 2024, arXiv
2407.21783).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

SCALINGS = ("default", "linear", "llama3", "divisors")


def inverse_frequencies(head_dim: int, theta: float, scaling: Mapping[str, Any]) -> np.ndarray:
    """The frequencies [d/2], float32.

    ``scaling`` is Hugging Face's object: ``rope_type`` (or ``type``), ``factor``, and for llama3
    ``low_freq_factor``, ``high_freq_factor`` and ``original_max_position_embeddings``. "divisors" is how GGUF
    files say llama3: the divisor of each frequency. Raises ValueError for another scaling and for values that
    make no sense.
    """
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in SCALINGS:
        raise ValueError(f"rope_scaling: expected one of {list(SCALINGS[:3])}, got {kind!r}")
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies: np.ndarray = (
        np.float32(1) / np.float32(theta) ** exponents
    )  # float32 as in training: it is rounded
    if kind == "default":
        return frequencies
    if kind == "divisors":
        return frequencies / np.asarray(scaling["divisors"], np.float32)
    factor = _positive(scaling, "factor")
    if kind == "linear":
        return frequencies / np.float32(factor)
    low, high = _positive(scaling, "low_freq_factor"), _positive(scaling, "high_freq_factor")
    if high <= low:
        raise ValueError(f"high_freq_factor: expected more than low_freq_factor = {low}, got {high}")
    turns = _positive(scaling, "original_max_position_embeddings") * frequencies / np.float32(2 * math.pi)
    fast = np.clip((turns - np.float32(low)) / np.float32(high - low), 0, 1)
    blended: np.ndarray = (1 - fast) * (frequencies / np.float32(factor)) + fast * frequencies
    return blended


def angles(
    frequencies: np.ndarray, positions: np.ndarray, dtype: np.dtype[Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines [n, d/2] of ``positions`` [n]."""
    turned = positions.astype(np.float32)[:, None] * frequencies
    return np.cos(turned).astype(dtype, copy=False), np.sin(turned).astype(dtype, copy=False)


def _positive(scaling: Mapping[str, Any], name: str) -> float:
    value = scaling.get(name)
    if not isinstance(value, int | float) or not value > 0:
        raise ValueError(f"rope_scaling: expected {name}, a positive number, got {value!r}")
    return float(value)
