"""How the time of an adapted layer grows: with tokens, ranks, skills, tasks, threads. Both passes.

Each series is a contest whose candidates are its points; ``slopes`` fits what they say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from benchmarks.layers import Layer, Shape
from benchmarks.options import Options
from benchmarks.timing import Candidate, Contest, Row
from polymoe import _core
from polymoe import functional as F

SERIES = {
    "tokens": [2**i for i in range(8, 17)],
    "skills": [2**i for i in range(7)],
    "rank": [2**i for i in range(8)],
    "tasks": [1, 10, 100, 1000],
}
QUICK = {"tokens": [256, 512, 1024, 2048], "skills": [1, 4, 16], "rank": [1, 8, 32], "tasks": [1, 1000]}
D = 384
L = 128


def contests(options: Options) -> Iterator[Contest]:
    """One for each series; that of threads where there are several."""
    B = 8 if options.quick else 32
    for name, values in (QUICK if options.quick else SERIES).items():
        layers = [make(name, value, B) for value in values]
        yield series(name, values, [layer.poly(packed(layer)) for layer in layers], layers)
    counts = sorted({1, *(2**i for i in range(1, 12) if 2**i < options.threads), options.threads})
    if len(counts) > 1:
        layer = make("tokens", B * L, B)
        run = layer.poly(packed(layer))
        yield series(
            "threads", counts, [partial(on, n, options.threads, run) for n in counts], [layer] * len(counts)
        )


def make(name: str, value: int, B: int) -> Layer:
    """The layer at one point of a series."""
    shape = Shape(value // L if name == "tokens" else B, L, D, D, (), S=value if name == "skills" else 8)
    return Layer(shape, value if name == "rank" else 8, tasks=value if name == "tasks" else 8)


def packed(layer: Layer) -> F.PackedWeight:
    """The frozen weight."""
    return F.PackedWeight(layer.weight)


def on(n: int, default: int, run: Callable[[], object]) -> None:
    """Run with n threads."""
    _core.set_num_threads(n)
    run()
    _core.set_num_threads(default)


def series(
    name: str, values: Sequence[int], runs: Iterable[Callable[[], object]], layers: Sequence[Layer]
) -> Contest:
    """One candidate for each point."""
    candidates = [
        Candidate(str(value), run, flops=4.0 * len(layer.x) * D * D + layer.adapter_flops)
        for value, run, layer in zip(values, runs, layers, strict=True)
    ]
    return Contest("growth", name, candidates, lambda: layers[0].check(packed(layers[0])))


class Growth(NamedTuple):
    """A series, its least seconds, and the slope of log time over log value: of all, of the upper half."""

    name: str
    values: list[float]
    seconds: list[float]
    slope: float
    upper: float

    @property
    def doubling(self) -> float:
        """How much longer twice as many take, by the slope of all, relative."""
        return float(2.0**self.slope - 1)


def slopes(rows: Iterable[Row]) -> list[Growth]:
    """What the rows of this group say."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        if row.group == "growth":
            values, seconds = found.setdefault(row.what, ([], []))
            values.append(float(row.who))
            seconds.append(row.seconds)
    return [
        Growth(
            name,
            values,
            seconds,
            _slope(values, seconds),
            _slope(*(a[-(len(a) // 2 + 1) :] for a in (values, seconds))),
        )
        for name, (values, seconds) in found.items()
    ]


def _slope(values: Sequence[float], seconds: Sequence[float]) -> float:
    return float(np.polyfit(np.log(values), np.log(seconds), 1)[0])
