"""A LoRA as plain arrays, without a base: what exports, conversions and merges pass on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np

from polymoe.adapters.config import AdapterConfig
from polymoe.adapters.inject import Adapter, assemble, inject
from polymoe.adapters.methods import configure
from polymoe.adapters.parts import Site
from polymoe.batch import TaskRegistry
from polymoe.files import PathLike
from polymoe.interop.peft import save_adapter

V = TypeVar("V")


@dataclass(frozen=True)
class Pair:
    """The update ``scale * lora_B^T lora_A`` [O, D] of one weight: ``lora_A`` [r, D], ``lora_B`` [r, O].
    ``bias`` [O] is added to the output beside it; most LoRAs have none."""

    lora_A: np.ndarray
    lora_B: np.ndarray
    scale: float = 1.0
    bias: np.ndarray | None = None

    @property
    def r(self) -> int:
        """Rank."""
        return len(self.lora_A)

    @property
    def shape(self) -> tuple[int, int]:
        """O, D."""
        return self.lora_B.shape[1], self.lora_A.shape[1]

    def scaled(self, scale: float) -> Pair:
        """The same update with another scale; lora_B takes the rest."""
        factor = self.scale / scale
        return (
            self
            if factor == 1
            else replace(self, lora_B=_float(self.lora_B * np.float64(factor)), scale=scale)
        )

    def padded(self, r: int) -> Pair:
        """The same update with rank r, by rows of zeros."""
        rows = ((0, r - self.r), (0, 0))
        return replace(self, lora_A=np.pad(self.lora_A, rows), lora_B=np.pad(self.lora_B, rows))

    def update(self) -> np.ndarray:
        """[O, D], float64."""
        return self.scale * (self.lora_B.T.astype(np.float64) @ self.lora_A.astype(np.float64))


@dataclass(frozen=True)
class Lora:
    """``pairs`` by the name of their module. ``base``: name, model_type and fingerprint of the base that it
    was made on, as far as they are known, and fan_in_fan_out where it has Conv1D;
    ``provenance``: anything JSON can hold."""

    pairs: Mapping[str, Pair]
    base: Mapping[str, Any] = field(default_factory=dict)
    task_type: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def config(self) -> AdapterConfig:
        """The configuration that describes it: the commonest rank and alpha, and patterns for the rest."""
        ranks = {name: pair.r for name, pair in self.pairs.items()}
        alphas = {name: pair.scale * pair.r for name, pair in self.pairs.items()}
        r, alpha = commonest(ranks.values()), commonest(alphas.values())
        return configure(
            "lora",
            r=r,
            lora_alpha=alpha,
            rank_pattern={name: own for name, own in ranks.items() if own != r},
            alpha_pattern={name: own for name, own in alphas.items() if own != alpha},
            lora_bias=any(pair.bias is not None for pair in self.pairs.values()),
            target_modules=tuple(self.pairs),
        )

    def without_bias(self, why: str) -> Lora:
        """Itself; ValueError with the reason where a layer has a bias."""
        if found := [name for name, pair in self.pairs.items() if pair.bias is not None]:
            raise ValueError(
                f"bias: expected none ({why}), got some of {found[0]} and {len(found)} layers in all"
            )
        return self

    def adapter(self, base: Any = None) -> Adapter:
        """As an adapter: of a base (ValueError where modules or sizes do not fit), or of none."""
        config, tasks = self.config(), TaskRegistry([])
        if base is None:
            sites = [Site(name, *pair.shape[::-1]) for name, pair in self.pairs.items()]
            adapter = assemble(config, tasks, sites)
        else:
            adapter = inject(base, config, tasks, seed=0)
        if lost := sorted(self.pairs.keys() - adapter.layers.keys()):
            raise ValueError(f"base: expected linear layers {', '.join(lost)}, got none of these names")
        for name, pair in self.pairs.items():
            experts: Any = adapter.layers[name].experts
            for part in ("lora_A", "lora_B"):
                own, given = getattr(experts, part).data, getattr(pair, part)[None]
                if own.shape != given.shape:
                    raise ValueError(f"{name}.{part}: expected shape {own.shape[1:]}, got {given.shape[1:]}")
                own[...] = given
            if pair.bias is not None:
                experts.lora_bias.data[...] = pair.bias / experts.scale
        return adapter

    def save(self, folder: PathLike) -> None:
        """Write a PEFT folder, with polymoe.json beside PEFT's files."""
        base = SimpleNamespace(**{"name": None, "model_type": None, "fingerprint": None, **self.base})
        task_type = self.task_type or "FEATURE_EXTRACTION"
        save_adapter(base, self.adapter(), folder, task_type=task_type, provenance=self.provenance)


def commonest(values: Iterable[V]) -> V:
    """The value that is there most often."""
    return Counter(values).most_common(1)[0][0]


def cat(pairs: Sequence[Pair], weights: Sequence[float] | None = None) -> Pair:
    """The weighted sum of updates as one pair of scale 1 and of the summed rank, float64: exact."""
    weights = [1.0] * len(pairs) if weights is None else weights
    A = np.concatenate([p.lora_A * np.float64(w * p.scale) for p, w in zip(pairs, weights, strict=True)])
    return Pair(A, np.concatenate([p.lora_B.astype(np.float64) for p in pairs]))


def norm(pair: Pair) -> float:
    """Frobenius norm of an update, from triangles of the factors: no [O, D] is made, and a small difference
    of large updates keeps its digits."""
    factors = (pair.lora_A, pair.lora_B)
    a, b = (np.asarray(np.linalg.qr(part.T.astype(np.float64), mode="r")) for part in factors)
    return float(abs(pair.scale) * np.linalg.norm(b @ a.T))


def distance(a: Pair, b: Pair) -> float:
    """Frobenius norm of the difference of two updates, biases as a further column."""
    biases = [np.zeros(1) if pair.bias is None else pair.bias.astype(np.float64) for pair in (a, b)]
    return float(np.hypot(norm(cat([a, b], [1.0, -1.0])), np.linalg.norm(biases[0] - biases[1])))


def pair_up(
    tensors: Mapping[str, np.ndarray], a: str, b: str, path: Path
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(A, B) in float32 by the names before ``.a`` and ``.b``. ValueError that lists what is missing and what
    is no part of a pair, and for what is no finite matrix."""
    ends = (f".{a}", f".{b}")
    names = sorted({key.removesuffix(end) for key in tensors for end in ends if key.endswith(end)})
    expected = {name + end for name in names for end in ends}
    if not names or expected != tensors.keys():
        missing, extra = sorted(expected - tensors.keys()), sorted(tensors.keys() - expected)
        raise ValueError(
            f"{path}: expected pairs {a}, {b}; missing: {', '.join(missing) or 'none'}; "
            f"unexpected: {', '.join(extra) or 'none'}"
        )
    for key, array in tensors.items():
        if array.ndim != 2:
            raise ValueError(f"{path}: {key}: expected a matrix, got shape {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"{path}: {key}: expected finite weights, got NaN or infinity")
    return {name: (_float(tensors[name + ends[0]]), _float(tensors[name + ends[1]])) for name in names}


def make_pair(name: str, A: np.ndarray, B: np.ndarray, scale: float, path: Path) -> Pair:
    """A pair of factors [r, D], [r, O]. ValueError where their ranks differ."""
    if len(A) != len(B):
        raise ValueError(f"{path}: {name}: expected factors of one rank, got {len(A)} and {len(B)}")
    return Pair(np.ascontiguousarray(A), np.ascontiguousarray(B), scale)


def _float(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32)
