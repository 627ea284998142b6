"""The regression gate: ratios that do not depend on the machine, far below what is reached, never seconds.

On one thread, by its processor time, which other processes hardly touch. What fails is measured once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from benchmarks import layers, machine, operations, products
from benchmarks.options import Options
from benchmarks.timing import Candidate, Contest, Row, race
from polymoe import _core

ROUNDS = 7
OF_PEAK = 65  # percent; 90 are reached
OVER_NUMPY = 0.75  # times the speed; 1 is reached
OVERHEAD = 25  # percent of the frozen layer, rank 8; 10 are reached
SLACK = 0.5  # of what an operation reached against the reference
MOST = 6.0  # what Python loops in the reference cost says nothing about us
REACHED = {
    "add": 0.93, "multiply": 21.5, "relu": 2.9, "dropout": 0.92, "scale_by": 1.5, "gelu": 108.0, "silu": 2.6,
    "layer_norm": 5.4, "rms_norm": 6.2, "rope": 12.9, "l2_normalize": 3.8, "concat": 1.3, "embedding": 38.0,
    "mean_pool": 2.1, "attention_pool": 5.2, "softmax_router": 1.8, "topk_router": 0.87, "balance_loss": 1.2,
    "ibp_loss": 0.78, "cross_entropy": 3.2, "lm_loss": 1.2, "mse": 1.3, "attention": 1.2, "mix": 11.6,
    "tensor_product": 11.9, "dense": 1.0, "linear": 1.2, "moe": 6.1, "expert_dense": 1.5,
}  # fmt: skip
"""Both passes: the time of the reference in NumPy over ours."""


class Check(NamedTuple):
    """A contest, and what must hold of its rows."""

    contest: Contest
    rules: Callable[[list[Row]], Iterator[tuple[str, float, float]]]  # what, a value, the least it may be


def checks(options: Options) -> Iterator[Check]:
    """All of them."""
    yield Check(known_work(), known)
    yield Check(products.contest(options, 512, 384, 384), product)
    yield Check(layers.contest(options, layers.Shape(4, 128, 384, 384, (8,))), layer)
    for case in operations.largest():
        if case.op in REACHED:
            yield Check(operations.contest(case, quick=True), operation)


def known_work() -> Contest:
    """Multiply-adds alone, and twice as many: whether the harness times what is known as what it is."""

    def peak(times: int) -> Candidate:
        rounds = 50_000
        flops = times * _core.peak(rounds, 0)
        return Candidate(f"peak x {times}", lambda: _core.peak(times * rounds, 0), flops, bare="peak x 4")

    return Contest("gate", "known work", [peak(4), peak(8)], lambda: None)


def known(rows: list[Row]) -> Iterator[tuple[str, float, float]]:
    """Twice the work takes twice the time, all of it at the peak."""
    four, eight = rows
    yield "known work, % of peak", min(four.percent[1], eight.percent[1]), 75
    yield "known work, twice as much takes twice as long", min(eight.ratio[1] / 2, 2 / eight.ratio[1]), 0.8


def product(rows: list[Row]) -> Iterator[tuple[str, float, float]]:
    """Percent of peak, and against NumPy."""
    found = {row.who: row for row in rows}
    yield "frozen product, % of peak", found["polymoe"].percent[1], OF_PEAK
    yield "frozen product, times NumPy's speed", found["NumPy"].ratio[1], OVER_NUMPY


def layer(rows: list[Row]) -> Iterator[tuple[str, float, float]]:
    """What an adapter leaves of the speed of the frozen layer."""
    over = next(row.overhead for row in rows if row.who == "polymoe r=8")
    assert over is not None
    yield "layer, rank 8, % of the frozen layer's speed", 100 / (1 + over), 100 / (1 + OVERHEAD / 100)


def operation(rows: list[Row]) -> Iterator[tuple[str, float, float]]:
    """Against the reference."""
    row = next(row for row in rows if row.who == "NumPy, both passes")
    yield (
        f"{row.what}, times the reference's speed",
        row.ratio[1],
        SLACK * min(MOST, REACHED[row.what.partition("[")[0]]),
    )


def main() -> int:
    """1 when something fails twice; prints each value beside the least it may be."""
    failed = []
    with machine.threads(1):
        options = Options(1, tuple(_core.isas()), ROUNDS, quick=True)
        roofs = machine.Roofs(machine.clock(1))
        measure = partial(race, rounds=ROUNDS, roofs=roofs, isa=options.isas[0])
        for check in checks(options):
            values = list(check.rules(measure(check.contest)))
            if any(value < least for _, value, least in values):
                again = check.rules(measure(check.contest))
                values = [
                    (what, max(a, b), least)
                    for (what, a, least), (_, b, _) in zip(values, again, strict=True)
                ]
            for what, value, least in values:
                good = value >= least
                print(f"{'  ' if good else 'x '}{what:70}{value:8.2f}   at least {least:.2f}")
                failed += [] if good else [what]
    print(f"{len(failed)} too slow: {', '.join(failed)}" if failed else "as fast as it was")
    return 1 if failed else 0
