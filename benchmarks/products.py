"""The frozen product on every instruction set and dtype, against NumPy and torch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

from benchmarks import rivals
from benchmarks.options import Options
from benchmarks.timing import Candidate, Contest, same_bits
from polymoe import functional as F

SHAPES = (
    (4096, 384, 384),
    (4096, 384, 1536),
    (4096, 1536, 384),
    (1024, 384, 384),
    (4096, 768, 768),
    (2048, 1024, 1024),
    (2048, 4096, 4096),
)
QUICK = ((1024, 384, 384), (1024, 384, 1536))
BF16_ROUNDING = 2.0**-9


def contests(options: Options) -> Iterator[Contest]:
    """One for each shape (N, D, O)."""
    for shape in QUICK if options.quick else SHAPES:
        yield contest(options, *shape)


def contest(options: Options, n: int, d: int, o: int) -> Contest:
    """y = x W^T of one shape."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((n, d), np.float32), rng.standard_normal((o, d), np.float32)
    packed, half = F.PackedWeight(w), F.PackedWeight(w, dtype=ml_dtypes.bfloat16)
    y = np.empty((n, o), np.float32)
    flops, moved = 2.0 * n * d * o, 4.0 * (n * d + n * o + d * o)
    candidates = [Candidate("polymoe", partial(F.linear, x, packed), flops, moved, label=f"{d} → {o}")]
    if d < 4096:
        candidates += [
            Candidate(f"polymoe {isa}", partial(F.linear, x, packed), flops, moved, isa=isa)
            for isa in options.isas[1:]
            if not options.isas[0].startswith(isa)  # the same kernels in fp32
        ]
    candidates.append(Candidate("NumPy", lambda: np.matmul(x, w.T, out=y), flops, moved))
    run, label = partial(F.linear, x, half), f"{d} → {o}, bf16"
    candidates.append(
        Candidate("polymoe bf16", run, flops, moved - 2.0 * d * o, dtype="bfloat16", label=label)
    )
    if options.torch:
        candidates += _torch(options, x, w, flops, moved)

    def check() -> None:
        few = x[:64].astype(float)
        want, size = few @ w.T.astype(float), np.abs(few) @ np.abs(w).T.astype(float)
        error = np.abs(F.linear(x, packed)[0][:64] - want)
        assert np.all(error <= d * 2.0**-24 * size), "the product is wrong: not timed"
        same_bits(lambda: [F.linear(x, packed)[0]])
        error = np.abs(F.linear(x, half)[0][:64] - want)
        bound = 2 * BF16_ROUNDING + BF16_ROUNDING**2 + d * 2.0**-24
        assert np.all(error <= bound * size), "the bf16 product is wrong: not timed"
        same_bits(lambda: [F.linear(x, half)[0]])

    return Contest("products", f"{n} x {d} -> {o}", candidates, check)


def _torch(options: Options, x: np.ndarray, w: np.ndarray, flops: float, moved: float) -> Iterator[Candidate]:
    """The same by torch, which has the weight in its own order and is told that nothing needs a gradient."""
    torch = rivals.torch()
    inputs = [rivals.tensor(a) for a in (x, w)]

    def run(pair: list[Any]) -> Any:
        with torch.inference_mode():
            return torch.nn.functional.linear(*pair)

    yield Candidate("torch", partial(run, inputs), flops, moved)
    if options.rivals_in("bfloat16"):
        halves = partial(run, [a.to(torch.bfloat16) for a in inputs])
        yield Candidate("torch bf16", halves, flops, moved / 2, against="polymoe bf16", dtype="bfloat16")
