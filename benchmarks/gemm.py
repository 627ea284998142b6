"""Time the frozen product and the adapted layer: ``python -m benchmarks.gemm --isa avx512 --threads 1``.

Candidates take turns, so that all of them meet the same machine; one of them is the multiply-add peak of the
instruction set, which the others are given in per cent of; NumPy has as many threads. Results are compared
with float64 before anything is timed.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from polymoe import _core
from polymoe import functional as F
from polymoe import reference as R

SHAPES = [(4096, 384, 384), (4096, 384, 1536), (4096, 1536, 384), (1024, 384, 384), (2048, 1024, 1024)]
RANKS = (4, 8, 16, 64)
PEAK_ROUNDS = 300_000


class Candidate(NamedTuple):
    """Something to time: what it is called, its operations, how it is run once."""

    name: str
    flops: float
    run: Callable[[], object]


def times(candidates: list[Candidate], rounds: int, clock: Callable[[], float]) -> dict[str, np.ndarray]:
    """Seconds of every candidate in every round, in a new order each time; a first round is not counted."""
    rng, seconds = np.random.default_rng(0), {c.name: np.empty(rounds + 1) for c in candidates}
    for i in range(rounds + 1):
        for j in rng.permutation(len(candidates)):
            start = clock()
            candidates[j].run()
            seconds[candidates[j].name][i] = clock() - start
    return {name: s[1:] for name, s in seconds.items()}


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """float32 from the normal distribution."""
    return rng.standard_normal(shape, dtype=np.float32)


def products(rng: np.random.Generator) -> list[Candidate]:
    """The frozen product at every shape, and NumPy's."""
    candidates = []
    for n, d, o in SHAPES:
        x, w = normal(rng, n, d), normal(rng, o, d)
        packed, y = F.PackedWeight(w), np.empty((n, o), np.float32)
        error = np.abs(F.linear(x, packed)[0][:64] - x[:64].astype(float) @ w.T.astype(float))
        bound = d * 2.0**-24 * (np.abs(x[:64]).astype(float) @ np.abs(w).T.astype(float))
        assert np.all(error <= bound), "the product is wrong: not timed"
        flops, shape = 2.0 * n * d * o, f"{n} x {d} -> {o}"
        candidates.append(Candidate(f"linear {shape}", flops, lambda x=x, p=packed: F.linear(x, p)))
        candidates.append(Candidate(f"numpy  {shape}", flops, lambda x=x, w=w, y=y: np.matmul(x, w.T, out=y)))
    return candidates


def layers(rng: np.random.Generator, B: int = 32, L: int = 128, D: int = 384, S: int = 8) -> list[Candidate]:
    """Forward and backward of one layer with B routing rows, without and with adapters of several ranks."""
    n = B * L
    x, dy, w = normal(rng, n, D), normal(rng, n, D), normal(rng, D, D)
    packed, cu_seqlens, ids = F.PackedWeight(w), np.arange(B + 1) * L, np.arange(B)
    candidates = []
    for r in (0, *RANKS):
        term = {
            "lora_A": normal(rng, S, r, D),
            "lora_B": normal(rng, S, r, D),
            "weights": rng.random((B, 1, S), dtype=np.float32),
            "adapter_ids": ids,
            "cu_seqlens": cu_seqlens,
        }

        def run(term: dict[str, np.ndarray] = term if r else {}) -> tuple[np.ndarray, F.LinearGrads]:
            y, saved = F.linear(x, packed, **term)
            return y, F.linear_backward(saved, dy)

        wide = {k: v.astype(float) if v.dtype == np.float32 else v for k, v in term.items()} if r else {}
        y, saved = R.linear(x.astype(float), w.astype(float), **wide)
        got, grads = run()
        want = {"y": y, **R.linear_backward(saved, dy.astype(float))}
        for name, value in {"y": got, **grads._asdict()}.items():
            if value is not None:
                assert np.abs(value - want[name]).max() <= 1e-5 * np.abs(want[name]).max(), (
                    f"{name} is wrong: not timed"
                )
        name = (
            f"layer {B} x {L}, {D} -> {D}, S={S}, r={r}"
            if r
            else f"layer {B} x {L}, {D} -> {D}, frozen alone"
        )
        candidates.append(Candidate(name, 4.0 * n * D * D, run))
    return candidates


def report(isa: str, rounds: int, clock: Callable[[], float]) -> None:
    """Print the table of one instruction set."""
    _core.set_isa(isa)
    rng = np.random.default_rng(0)
    peak = Candidate("peak", _core.peak(PEAK_ROUNDS), lambda: _core.peak(PEAK_ROUNDS))
    candidates = [peak, *products(rng), *layers(rng)]
    seconds = times(candidates, rounds, clock)
    rate = peak.flops / seconds["peak"].min()
    frozen = next(s.min() for name, s in seconds.items() if name.endswith("frozen alone"))
    print(f"\n{isa}: peak {rate * 1e-9:.0f} GF/s\n{'':44} min ms  median   GF/s  of peak  over frozen")
    for c in candidates[1:]:
        s = seconds[c.name]
        best, median, speed = s.min() * 1e3, np.median(s) * 1e3, c.flops / s.min()
        over = f"{100 * (s.min() / frozen - 1):11.1f} %" if "r=" in c.name else ""
        print(f"{c.name:44}{best:7.2f} {median:7.2f} {speed * 1e-9:6.0f} {100 * speed / rate:6.1f} % {over}")


def main() -> None:
    """Read the arguments; one table for each instruction set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--isa", choices=_core.isas(), help="only this instruction set")
    parser.add_argument("--threads", type=int, default=0, help="0: the default")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    _core.set_num_threads(args.threads)
    threads = _core.get_num_threads()
    # one thread: its processor time, which other processes hardly touch
    clock = time.thread_time if threads == 1 else time.perf_counter
    print(f"threads {threads}, {_core.openmp()}, load average {os.getloadavg()[0]:.2f}")
    with threadpool_limits(threads):
        for isa in [args.isa] if args.isa else _core.isas():
            report(isa, args.rounds, clock)


if __name__ == "__main__":
    main()
