"""Candidates that do the same thing take turns, so that all of them meet the same machine.

In every round each candidate has one turn, in a new order. A turn is timed *cold*, when nothing is in a
cache, and once more *warm*; what takes long is timed once, for then the two are the same. The first round is
not counted. Results are compared with an oracle before anything is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from benchmarks.machine import Elsewhere, Limits, Roofs
from polymoe import _core

LONG = 0.1
"""Seconds from which on a turn is one call."""

DRIFT, BUSY = 0.05, 0.05
"""Rows are marked when the limits before and after differ by more, or when others take more time."""


class Candidate(NamedTuple):
    """Something to time."""

    who: str  # "polymoe", "NumPy", "PEFT"
    run: Callable[[], object]
    flops: float = 0.0
    bytes: float = 0.0  # that must be moved at least
    against: str | None = None  # the candidate that its time is divided by; None: the first one
    bare: str | None = None  # the candidate that this one is, with something added
    before: Callable[[], object] | None = None  # not timed: sets what this one needs set
    isa: str | None = None  # None: that of the run
    dtype: str = "float32"
    least: Callable[[Limits, str], float] | None = None  # seconds, where flops and bytes alone do not say it
    tokens: float = 0.0  # to give tokens a second
    label: str | None = None  # in the plots


class Work(NamedTuple):
    """What has to be done: flops of frozen products, all other flops, bytes that are moved beside them."""

    frozen: float
    rest: float
    bytes: float = 0.0

    def least(self, dtype: str) -> Callable[[Limits, str], float]:
        """Seconds at the limits: each part at its own, frozen products in ``dtype``."""

        def seconds(limits: Limits, isa: str) -> float:
            peaks = limits.peaks
            return (
                self.frozen / peaks[isa, dtype] + self.rest / peaks[isa, "float32"] + self.bytes / limits.dram
            )

        return seconds


class Contest(NamedTuple):
    """Candidates that are compared with each other. ``check`` raises AssertionError where one is wrong.
    ``rounds``: at most, of what takes long."""

    group: str
    what: str
    candidates: Sequence[Candidate]
    check: Callable[[], object]
    rounds: int | None = None


@dataclass
class Row:
    """What was measured of one candidate; ``cold``, ``warm``: [least, median] seconds, ``warm`` None if long.

    ``limit``: the least seconds it can take by the roofs of this contest, cold and warm. ``ratio``: its time
    divided by that of ``against``. ``overhead``: over ``bare``. The better state of the least seconds counts.
    """

    group: str
    what: str
    who: str
    cold: list[float]
    warm: list[float] | None
    flops: float
    bytes: float
    limit: list[float]
    bound: str
    against: str
    ratio: list[float] = field(default_factory=list)  # cold, warm
    overhead: float | None = None
    isa: str = ""
    dtype: str = "float32"
    tokens: float = 0.0
    label: str | None = None
    marks: list[str] = field(default_factory=list)
    facts: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """The least, warm where that was timed."""
        return (self.warm or self.cold)[0]

    @property
    def noise(self) -> float:
        """How far the median lies above the least, relative."""
        least, median = self.warm or self.cold
        return median / least - 1

    @property
    def percent(self) -> list[float]:
        """Of the roof that binds, cold and warm."""
        times = [self.cold[0], (self.warm or self.cold)[0]]
        return [
            100 * limit / s if limit else float("nan") for limit, s in zip(self.limit, times, strict=True)
        ]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Turns:
    """Seconds of every round of one candidate."""

    def __init__(self) -> None:
        self.cold: list[float] = []
        self.warm: list[float] = []

    def least_and_median(self) -> tuple[list[float], list[float] | None]:
        """[least, median] of the counted rounds, cold and warm."""
        cold, warm = self.cold[1:], self.warm
        return _summary(cold), _summary(warm) if warm else None


def _summary(seconds: Sequence[float]) -> list[float]:
    return [float(np.min(seconds)), float(np.median(seconds))]


def race(contest: Contest, rounds: int, roofs: Roofs, isa: str, seed: int = 0) -> list[Row]:
    """Check, then time: one row for each candidate."""
    _core.set_isa(isa)
    contest.check()
    isas = dict.fromkeys(c.isa or isa for c in contest.candidates)
    elsewhere, before = Elsewhere(), roofs.limits(isas)
    best = before
    turns = {c.who: Turns() for c in contest.candidates}
    assert len(turns) == len(contest.candidates), f"{contest.what}: two candidates of one name"
    rng = np.random.default_rng(seed)
    for _ in range(min(rounds, contest.rounds or rounds) + 1):
        best = best.best(roofs.limits(isas, 1))
        for i in rng.permutation(len(contest.candidates)):
            candidate = contest.candidates[i]
            _core.set_isa(candidate.isa or isa)
            take_turn(candidate, turns[candidate.who], roofs)
    _core.set_isa(isa)
    after = roofs.limits(isas)
    marks = ["drift"] * (before.differ(after) > DRIFT) + ["busy"] * (elsewhere.share() > BUSY)
    return list(_rows(contest, turns, best.best(after), roofs, isa, marks))


def take_turn(candidate: Candidate, turns: Turns, roofs: Roofs) -> None:
    """One turn."""
    clock, run = roofs.clock, candidate.run
    if candidate.before is not None:
        candidate.before()
    short = bool(turns.cold) and turns.cold[0] < LONG
    if short:
        run()  # what `before` has changed, and code and small tables
    roofs.settle()
    start = clock()
    run()
    turns.cold.append(clock() - start)
    if short:
        run()
        start = clock()
        run()
        turns.warm.append(clock() - start)


def _rows(
    contest: Contest, turns: dict[str, Turns], limits: Limits, roofs: Roofs, isa: str, marks: list[str]
) -> Iterator[Row]:
    first = contest.candidates[0].who
    times = {who: t.least_and_median() for who, t in turns.items()}
    for c in contest.candidates:
        cold, warm = times[c.who]
        peak = limits.peaks[c.isa or isa, c.dtype]
        compute, memory = c.flops / peak, [c.bytes / limits.dram, c.bytes / roofs.level(c.bytes)]
        limit = [c.least(limits, c.isa or isa)] * 2 if c.least else [max(compute, m) for m in memory]
        row = Row(
            contest.group, contest.what, c.who, cold, warm, c.flops, c.bytes, limit,
            _bound(compute, memory[0]), c.against or first,
            isa=c.isa or isa, dtype=c.dtype, tokens=c.tokens, label=c.label, marks=list(marks),
            facts={"peak": peak, "dram": limits.dram, "level": roofs.level(c.bytes)},
        )  # fmt: skip
        theirs = times[row.against]
        row.ratio = [cold[0] / theirs[0][0], row.seconds / (theirs[1] or theirs[0])[0]]
        if c.bare is not None:
            bare = times[c.bare]
            row.overhead = row.seconds / (bare[1] or bare[0])[0] - 1
        yield row


def _bound(compute: float, memory: float) -> str:
    return "" if not compute and not memory else "compute" if compute >= memory else "memory"


def same_bits(run: Callable[[], Sequence[np.ndarray | None]], counts: Sequence[int] = (1, 2, 4)) -> None:
    """Assert that the result does not depend on the number of threads."""
    threads, results = _core.get_num_threads(), []
    for n in counts:
        _core.set_num_threads(n)
        results.append([None if a is None else np.asarray(a).tobytes() for a in run()])
    _core.set_num_threads(threads)
    assert all(result == results[0] for result in results), "other bits with other threads: not timed"


def close(name: str, got: Any, want: Any, tolerance: float, floor: float = 1e-30) -> None:
    """Assert that an error relative to the largest value (or ``floor``, if that is more) is small."""
    error = float(np.max(np.abs(np.asarray(got, dtype=float) - want), initial=0))
    scale = float(np.max(np.abs(want), initial=floor))
    assert error <= tolerance * scale, f"{name} is off by {error / scale:.2g} of its largest value: not timed"
