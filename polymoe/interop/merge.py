"""Several LoRAs of one base as one, by the ways of PEFT's ``add_weighted_adapter``.

Of the update that is wanted, ``sum_i w_i scale_i B_i^T A_i``, "cat" is exact (its rank is the sum of the
ranks) and "svd" the best of a given rank. The others mix the factors, ``A = sum_i a_i A_i`` and
``B = sum_i b_i B_i`` with ``a_i b_i = w_i scale_i``, so that terms ``B_i^T A_j`` come in that nobody asked
for; with "_svd" behind their name they mix the updates themselves, [O, D] at once, and the best of a rank is
taken. :func:`merge` says how large the difference from the sum is.

    linear            sum_i a_i A_i
    magnitude_prune   of each A_i the entries of largest size stay, ``density`` of them; then linear
    ties              the same; of these, those whose sign is that of their sum over i (or of most of them);
                      the sum of a_i A_i over what is left, divided by how many are left
    dare_linear       each entry stays with probability ``density``, divided by it; then linear
    dare_ties         the same; then signs and mean as in ties

Yadav et al. 2023, arXiv 2306.01708 (TIES); Yu et al. 2023, arXiv 2311.03099 (DARE).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from polymoe.interop.lora import Lora, Pair, cat, distance, norm

Sign = Literal["total", "frequency"]
MIXES = ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")
METHODS = ("cat", "svd", *MIXES, *(f"{name}_svd" for name in MIXES[1:]))
ALIASES = {"dare": "dare_linear", "dare_svd": "dare_linear_svd"}


@dataclass(frozen=True)
class Merged:
    """``lora``, and how far its updates are from the weighted sum of those given: the Frobenius norm of the
    difference over all layers, divided by that of the sum (0 / 0 is 0)."""

    lora: Lora
    error: float


@dataclass(frozen=True)
class Settings:
    """How to merge: ``method``; ``rank`` of the "svd" ones; ``density`` of all that thin out, in (0, 1];
    ``sign`` of the "ties" ones: that of the sum, or of most; ``rng`` of the "dare" ones.

    ValueError for what does not fit the method.
    """

    method: str
    rank: int | None
    density: float | None
    sign: Sign
    rng: Any

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {self.method!r}")
        ranked = self.method.endswith("svd")
        if self.rank is not None and (not ranked or self.rank < 1):
            expected = "at least 1" if ranked else f"None (method {self.method!r} has none)"
            raise ValueError(f"rank: expected {expected}, got {self.rank}")
        thins = self.method not in ("cat", "svd", "linear")
        if thins and not (self.density is not None and 0 < self.density <= 1):
            raise ValueError(
                f"density: expected a share in (0, 1] (method {self.method!r}), got {self.density}"
            )
        if self.density is not None and not thins:
            raise ValueError(
                f"density: expected None (method {self.method!r} keeps everything), got {self.density}"
            )
        if self.sign not in ("total", "frequency"):
            raise ValueError(f"sign: expected 'total' or 'frequency', got {self.sign!r}")
        if self.sign != "total" and "ties" not in self.method:
            raise ValueError(
                f"sign: expected 'total' (method {self.method!r} elects none), got {self.sign!r}"
            )


def merge(
    loras: Sequence[Lora],
    weights: Sequence[float] | None = None,
    method: str = "cat",
    *,
    rank: int | None = None,
    density: float | None = None,
    sign: Sign = "total",
    seed: int = 0,
) -> Merged:
    """One LoRA out of several.

    ``weights``: one each, 1 by default; negative ones take away. ``rank``: of "svd" and those that end in
    it, the largest of the given by default. ``density``: the share that "ties", "dare" and "magnitude_prune"
    keep. ``sign``: which the entries of "ties" must have, that of their sum or of most of them. ``seed``: of
    "dare". A layer that only some of them adapt is merged of those. Raises ValueError for bases or sizes that
    differ, ranks that differ where factors are mixed, biases, and settings that do not fit the method.
    """
    weights = [1.0] * len(loras) if weights is None else list(weights)
    method = ALIASES.get(method, method)
    how = Settings(method, rank, density, sign, np.random.default_rng(seed))
    loras = [lora.without_bias("a merge is one of updates of weights") for lora in loras]
    _check(loras, weights)
    pairs: dict[str, Pair] = {}
    lost = total = 0.0
    for name in dict.fromkeys(name for lora in loras for name in lora.pairs):
        has = [(lora.pairs[name], w) for lora, w in zip(loras, weights, strict=True) if name in lora.pairs]
        parts, own = [pair for pair, _ in has], [w for _, w in has]
        _check_shapes(name, parts, method)
        wanted = cat(parts, own)
        pair = _merge(parts, own, wanted, how)
        pairs[name] = Pair(pair.lora_A.astype(np.float32), pair.lora_B.astype(np.float32), pair.scale)
        lost += distance(pairs[name], wanted) ** 2
        total += norm(wanted) ** 2
    settings = {"method": method, "weights": weights, "rank": rank, "density": density, "seed": seed}
    settings["sign"] = None if sign == "total" else sign
    provenance = {"merged": {name: value for name, value in settings.items() if value is not None}}
    error = float(np.sqrt(lost / total)) if total else float(lost > 0)
    return Merged(Lora(pairs, loras[0].base, loras[0].task_type, provenance), error)


def _merge(pairs: list[Pair], weights: list[float], wanted: Pair, how: Settings) -> Pair:
    if how.method == "cat":
        return wanted
    rank = max(pair.r for pair in pairs) if how.rank is None else how.rank
    if how.method == "svd":
        return _svd(wanted, rank)
    mix = _mixer(how)
    if how.method.endswith("_svd"):
        update = mix(np.stack([pair.update() for pair in pairs]), np.array(weights))
        return _svd(Pair(np.eye(update.shape[1]), update.T), rank)
    gains = np.array([w * pair.scale for w, pair in zip(weights, pairs, strict=True)])
    root = np.sqrt(np.abs(gains))  # the sign goes with A alone
    A = mix(np.stack([pair.lora_A for pair in pairs]).astype(np.float64), root * np.sign(gains))
    B = mix(np.stack([pair.lora_B for pair in pairs]).astype(np.float64), root)
    return Pair(A, B)


def _mixer(how: Settings) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Arrays [n, ...] and weights [n] -> array [...]."""
    share, rng, sign = how.density or 1.0, how.rng, how.sign
    return {
        "linear": linear,
        "magnitude_prune": lambda arrays, by: linear(largest(arrays, share), by),
        "ties": lambda arrays, by: ties(arrays, by, share, sign),
        "dare_linear": lambda arrays, by: dare(arrays, by, share, rng),
        "dare_ties": lambda arrays, by: agreeing(drawn(arrays, share, rng), by, sign),
    }[how.method.removesuffix("_svd")]


def linear(arrays: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """``sum_i weights[i] arrays[i]``."""
    return np.asarray(np.tensordot(weights, arrays, 1))


def largest(arrays: np.ndarray, density: float) -> np.ndarray:
    """Each array [n, ...] with zeros for all but a share of its entries, those of largest size."""
    flat = arrays.reshape(len(arrays), -1)
    kept = np.zeros_like(flat)
    k = int(density * flat.shape[1])
    order = np.argsort(-np.abs(flat), axis=1, kind="stable")[:, :k]
    np.put_along_axis(kept, order, np.take_along_axis(flat, order, 1), 1)
    return kept.reshape(arrays.shape)


def drawn(arrays: np.ndarray, density: float, rng: Any) -> np.ndarray:
    """Each array with a random share of its entries, divided by the share."""
    return np.stack([np.where(rng.random(a.shape) < density, a / density, 0) for a in arrays])


def agreeing(arrays: np.ndarray, weights: np.ndarray, sign: Sign = "total") -> np.ndarray:
    """The weighted mean of the entries whose sign is that of their sum over the arrays, or of most."""
    signs = np.sign(arrays)
    elected = np.where((arrays if sign == "total" else signs).sum(axis=0) >= 0, 1, -1)
    agrees = signs == elected
    total = linear(np.where(agrees, arrays, 0), weights)
    return np.asarray(total / np.maximum(agrees.sum(axis=0), 1))


def ties(arrays: np.ndarray, weights: np.ndarray, density: float, sign: Sign = "total") -> np.ndarray:
    """The mean of what is large and agrees in sign, weighted. ``arrays`` [n, ...]."""
    return agreeing(largest(arrays, density), weights, sign)


def dare(arrays: np.ndarray, weights: np.ndarray, density: float, rng: Any) -> np.ndarray:
    """``sum_i weights[i] arrays[i]`` of a random share of the entries, divided by the share."""
    return linear(drawn(arrays, density, rng), weights)


def _svd(wanted: Pair, rank: int) -> Pair:
    """The best update of a rank: the SVD of the triangles, turned back."""
    (qa, ra), (qb, rb) = np.linalg.qr(wanted.lora_A.T), np.linalg.qr(wanted.lora_B.T)
    u, s, vt = np.linalg.svd(wanted.scale * (rb @ ra.T))
    k = min(rank, len(s))
    best = Pair(vt[:k] @ qa.T, (qb @ (u[:, :k] * s[:k])).T)
    return best.padded(rank)


def _check(loras: Sequence[Lora], weights: list[float]) -> None:
    if not loras:
        raise ValueError("loras: expected at least one, got none")
    if len(weights) != len(loras):
        raise ValueError(f"weights: expected {len(loras)}, one for each adapter, got {len(weights)}")
    if not np.isfinite(weights).all():
        raise ValueError(f"weights: expected finite numbers, got {weights}")
    for what in ("fingerprint", "name"):
        known = {lora.base[what] for lora in loras if lora.base.get(what) is not None}
        if len(known) > 1:
            raise ValueError(f"loras: expected one base, got {what}s {', '.join(sorted(map(str, known)))}")
        if known:  # equal fingerprints say more than names do
            break


def _check_shapes(name: str, pairs: list[Pair], method: str) -> None:
    if len(shapes := {pair.shape for pair in pairs}) > 1:
        raise ValueError(f"{name}: expected one shape [O, D], got {', '.join(map(str, sorted(shapes)))}")
    if method in MIXES and len(ranks := {pair.r for pair in pairs}) > 1:
        got = ", ".join(map(str, sorted(ranks)))
        raise ValueError(
            f"{name}: expected one rank (method {method!r}; cat and those with svd take any), got {got}"
        )
