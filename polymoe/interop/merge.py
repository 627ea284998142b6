"""Several LoRAs of one base as one: linear, cat, svd, TIES, DARE, defined as PEFT's ``add_weighted_adapter``.

Of the update that is wanted, ``sum_i w_i scale_i B_i^T A_i``, "cat" is exact (its rank is the sum of the
ranks) and "svd" the best of a given rank. The others mix the factors, ``A = sum_i a_i A_i`` and
``B = sum_i b_i B_i`` with ``a_i b_i = w_i scale_i``, so that terms ``B_i^T A_j`` come in that nobody asked
for: :func:`merge` says how large the difference is.

    linear   A = sum_i a_i A_i
    ties     of each A_i the entries of largest size stay (``density`` of them); of these, those whose sign is
             that of their sum over i; A is the sum of a_i A_i over what is left, divided by how many are left
    dare     each entry of A_i stays with probability ``density``, divided by it; then as linear

Yadav et al. 2023, arXiv 2306.01708 (TIES); Yu et al. 2023, arXiv 2311.03099 (DARE).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polymoe.interop.lora import Lora, Pair, cat, distance, norm

METHODS = ("linear", "cat", "svd", "ties", "dare")


@dataclass(frozen=True)
class Merged:
    """``lora``, and how far its updates are from the weighted sum of those given: the Frobenius norm of the
    difference over all layers, divided by that of the sum (0 / 0 is 0)."""

    lora: Lora
    error: float


def merge(
    loras: Sequence[Lora],
    weights: Sequence[float] | None = None,
    method: str = "cat",
    *,
    rank: int | None = None,
    density: float | None = None,
    seed: int = 0,
) -> Merged:
    """One LoRA out of several.

    ``weights``: one each, 1 by default; negative ones take away. ``rank``: of "svd", the largest of the given
    by default. ``density``: of "ties" and "dare", in (0, 1]. ``seed``: of "dare". A layer that only some of
    them adapt is merged of those. Raises ValueError for bases or sizes that differ, ranks that differ
    ("linear", "ties", "dare"), and settings that do not fit the method.
    """
    weights = [1.0] * len(loras) if weights is None else list(weights)
    loras = [lora.without_bias("a merge is one of updates of weights") for lora in loras]
    _check(loras, weights, method, rank, density)
    rng = np.random.default_rng(seed)
    pairs: dict[str, Pair] = {}
    lost = total = 0.0
    for name in dict.fromkeys(name for lora in loras for name in lora.pairs):
        has = [(lora.pairs[name], w) for lora, w in zip(loras, weights, strict=True) if name in lora.pairs]
        parts, own = [pair for pair, _ in has], [w for _, w in has]
        _check_shapes(name, parts, method)
        wanted = cat(parts, own)
        pair = _merge(parts, own, wanted, method, rank, density, rng)
        pairs[name] = Pair(pair.lora_A.astype(np.float32), pair.lora_B.astype(np.float32), pair.scale)
        lost += distance(pairs[name], wanted) ** 2
        total += norm(wanted) ** 2
    settings = {"method": method, "weights": weights, "rank": rank, "density": density, "seed": seed}
    provenance = {"merged": {name: value for name, value in settings.items() if value is not None}}
    error = float(np.sqrt(lost / total)) if total else float(lost > 0)
    return Merged(Lora(pairs, loras[0].base, loras[0].task_type, provenance), error)


def _merge(
    pairs: list[Pair],
    weights: list[float],
    wanted: Pair,
    method: str,
    rank: int | None,
    density: float | None,
    rng: Any,
) -> Pair:
    if method == "cat":
        return wanted
    if method == "svd":
        return _svd(wanted, max(pair.r for pair in pairs) if rank is None else rank)
    gains = np.array([w * pair.scale for w, pair in zip(weights, pairs, strict=True)])
    mix: Callable[[np.ndarray, np.ndarray], np.ndarray]
    if method == "linear":
        mix = linear
    elif method == "ties":
        mix = lambda arrays, by: ties(arrays, by, density or 1.0)
    else:
        mix = lambda arrays, by: dare(arrays, by, density or 1.0, rng)
    root = np.sqrt(np.abs(gains))  # the sign goes with A alone
    A = mix(np.stack([pair.lora_A for pair in pairs]).astype(np.float64), root * np.sign(gains))
    B = mix(np.stack([pair.lora_B for pair in pairs]).astype(np.float64), root)
    return Pair(A, B)


def linear(arrays: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """``sum_i weights[i] arrays[i]``."""
    return np.asarray(np.tensordot(weights, arrays, 1))


def ties(arrays: np.ndarray, weights: np.ndarray, density: float) -> np.ndarray:
    """The mean of what is large and agrees in sign, weighted. ``arrays`` [n, ...]."""
    flat = arrays.reshape(len(arrays), -1)
    kept = np.zeros_like(flat)
    k = int(density * flat.shape[1])
    largest = np.argsort(-np.abs(flat), axis=1, kind="stable")[:, :k]
    np.put_along_axis(kept, largest, np.take_along_axis(flat, largest, 1), 1)
    agrees = np.sign(kept) == np.where(kept.sum(axis=0) >= 0, 1, -1)
    total = np.where(agrees, kept * weights[:, None], 0).sum(axis=0)
    return np.asarray((total / np.maximum(agrees.sum(axis=0), 1)).reshape(arrays.shape[1:]))


def dare(arrays: np.ndarray, weights: np.ndarray, density: float, rng: Any) -> np.ndarray:
    """``sum_i weights[i] arrays[i]`` of a random share of the entries, divided by the share."""
    kept = np.stack([np.where(rng.random(a.shape) < density, a / density, 0) for a in arrays])
    return linear(kept, weights)


def _svd(wanted: Pair, rank: int) -> Pair:
    """The best update of a rank: the SVD of the triangles, turned back."""
    (qa, ra), (qb, rb) = np.linalg.qr(wanted.lora_A.T), np.linalg.qr(wanted.lora_B.T)
    u, s, vt = np.linalg.svd(wanted.scale * (rb @ ra.T))
    k = min(rank, len(s))
    best = Pair(vt[:k] @ qa.T, (qb @ (u[:, :k] * s[:k])).T)
    return best.padded(rank)


def _check(
    loras: Sequence[Lora], weights: list[float], method: str, rank: int | None, density: float | None
) -> None:
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    if not loras:
        raise ValueError("loras: expected at least one, got none")
    if len(weights) != len(loras):
        raise ValueError(f"weights: expected {len(loras)}, one for each adapter, got {len(weights)}")
    if not np.isfinite(weights).all():
        raise ValueError(f"weights: expected finite numbers, got {weights}")
    if rank is not None and (method != "svd" or rank < 1):
        expected = "at least 1" if method == "svd" else f"None (method {method!r} has none)"
        raise ValueError(f"rank: expected {expected}, got {rank}")
    thins = method in ("ties", "dare")
    if thins and not (density is not None and 0 < density <= 1):
        raise ValueError(f"density: expected a share in (0, 1] (method {method!r}), got {density}")
    if density is not None and not thins:
        raise ValueError(f"density: expected None (method {method!r} keeps everything), got {density}")
    for what in ("fingerprint", "name"):
        known = {lora.base[what] for lora in loras if lora.base.get(what) is not None}
        if len(known) > 1:
            raise ValueError(f"loras: expected one base, got {what}s {', '.join(sorted(map(str, known)))}")
        if known:  # equal fingerprints say more than names do
            break


def _check_shapes(name: str, pairs: list[Pair], method: str) -> None:
    if len(shapes := {pair.shape for pair in pairs}) > 1:
        raise ValueError(f"{name}: expected one shape [O, D], got {', '.join(map(str, sorted(shapes)))}")
    if method not in ("cat", "svd") and len(ranks := {pair.r for pair in pairs}) > 1:
        got = ", ".join(map(str, sorted(ranks)))
        raise ValueError(f"{name}: expected one rank (method {method!r}; cat and svd take any), got {got}")
