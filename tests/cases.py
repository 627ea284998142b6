"""THE table of cases: every operation at awkward sizes, with its tolerance, its flops and its bytes.

Read by test_ops.py (every instruction set and dtype against the reference), test_gradients.py (finite differences) and the
benchmarks. A case makes its arguments from a random generator in float64; ``cast`` brings them to a dtype. To add an operation:
a function that yields its cases, and its name in ``CASES``.

Errors are measured against the largest absolute value of the exact result (or ``floor`` if that is larger), so that a tolerance of
``1e-6`` means about eight units in the last place of the largest value in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

Args = dict[str, Any]


class Case(NamedTuple):
    """One operation at one size."""

    op: str
    size: str  # what is special about it: "N=129 D=17"
    make: Callable[[np.random.Generator], Args]
    wrt: tuple[str, ...]  # differentiable arguments
    tol: dict[str, float]  # dtype -> tolerance of y and of the gradients
    flops: float = 0.0  # of the forward
    bytes: float = 0.0  # of the forward, in float32
    floor: float = 1e-2
    big: bool = False  # large enough for several threads: also the one that benchmarks time

    def __str__(self) -> str:
        return f"{self.op}[{self.size}]"


def cast(args: Args, dtype: str) -> Args:
    """The arguments with every float64 array in ``dtype``."""
    return {k: v.astype(dtype) if isinstance(v, np.ndarray) and v.dtype == np.float64 else v for k, v in args.items()}


def lengths_to_cu_seqlens(lengths: Any) -> np.ndarray:
    """Offsets [B+1] of examples of these lengths."""
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, dtype=np.int64))]).astype(np.int64)


COUNTS = (0, 1, 3, 15, 16, 17, 127, 128, 129, 331)
LARGE = 300_000  # values: several threads take part


def add_cases() -> Iterator[Case]:
    for n in (*COUNTS, LARGE):
        def make(rng: np.random.Generator, n: int = n) -> Args:
            return {"a": rng.normal(size=(n,)), "b": rng.normal(size=(n,))}
        yield Case("add", f"n={n}", make, ("a", "b"), {"float32": 1e-7, "float64": 1e-15}, n, 12.0 * n, big=n == LARGE)


def dropout_cases() -> Iterator[Case]:
    for n in (*COUNTS, LARGE):
        def make(rng: np.random.Generator, n: int = n) -> Args:
            return {"x": rng.normal(size=(n, 1)), "mask_scale": (rng.random((n, 1)) < 0.9) / 0.9}
        yield Case("dropout", f"n={n}", make, ("x",), {"float32": 1e-7, "float64": 1e-15}, n, 12.0 * n, big=n == LARGE)


def scale_by_cases() -> Iterator[Case]:
    for n in (*COUNTS, LARGE):
        def make(rng: np.random.Generator, n: int = n) -> Args:
            return {"x": rng.normal(size=(n,)), "log_scale": rng.normal(size=1)}
        yield Case("scale_by", f"n={n}", make, ("x", "log_scale"), {"float32": 3e-7, "float64": 1e-14}, n, 8.0 * n,
                   big=n == LARGE)


def gelu_cases() -> Iterator[Case]:
    for approximate in ("none", "tanh"):
        for n in (*COUNTS, LARGE):
            def make(rng: np.random.Generator, n: int = n, approximate: str = approximate) -> Args:
                return {"x": rng.normal(size=(n,)) * 3, "approximate": approximate}
            yield Case("gelu", f"{approximate} n={n}", make, ("x",), {"float32": 2e-6, "float64": 1e-13}, 30.0 * n, 8.0 * n,
                       floor=1.0, big=n == LARGE)


def layer_norm_cases() -> Iterator[Case]:
    sizes = [(0, 5), (1, 1), (3, 2), (127, 15), (128, 16), (129, 17), (300, 33), (700, 384)]
    for n, d in sizes:
        for residual in (False, True):
            def make(rng: np.random.Generator, n: int = n, d: int = d, residual: bool = residual) -> Args:
                args = {"x": rng.normal(size=(n, d)) + 0.5, "weight": rng.normal(size=d), "bias": rng.normal(size=d), "eps": 1e-5}
                return {**args, "residual": rng.normal(size=(n, d))} if residual else args
            wrt = ("x", "weight", "bias", "residual") if residual else ("x", "weight", "bias")
            yield Case("layer_norm", f"N={n} D={d}{' residual' if residual else ''}", make, wrt, {"float32": 3e-6, "float64": 1e-12},
                       8.0 * n * d, (12.0 if residual else 8.0) * n * d,
                       floor=1e3 if d < 3 else 1e-2, big=d == 384)  # one or two columns: dx is a difference of large numbers


def l2_normalize_cases() -> Iterator[Case]:
    for b, d in [(0, 3), (1, 1), (2, 17), (129, 31), (1000, 384)]:
        def make(rng: np.random.Generator, b: int = b, d: int = d) -> Args:
            return {"x": rng.normal(size=(b, d))}
        yield Case("l2_normalize", f"B={b} D={d}", make, ("x",), {"float32": 1e-6, "float64": 1e-13}, 3.0 * b * d, 8.0 * b * d,
                   floor=1.0, big=d == 384)

    def tiny(rng: np.random.Generator) -> Args:
        return {"x": rng.normal(size=(3, 5)) * 1e-3, "eps": 1.0}
    yield Case("l2_normalize", "shorter than eps", tiny, ("x",), {"float32": 1e-6, "float64": 1e-13})


CASES = [
    case
    for cases in (add_cases, dropout_cases, scale_by_cases, gelu_cases, layer_norm_cases, l2_normalize_cases)
    for case in cases()
]
