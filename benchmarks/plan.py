"""What is wanted of the table of methods, and which runs that takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import tyro

from benchmarks.ladder import Job, Ladder, Size
from polymoe.adapters.methods import METHODS


@dataclass(frozen=True)
class Options:
    """Compare all methods, each at its best learning rate."""

    data: tyro.conf.Positional[tuple[str, ...]]
    """Folders of tasks."""
    output: str = "runs/methods"
    """Where runs and tables are kept."""
    methods: tuple[str, ...] = tuple(METHODS)
    tasks: tuple[str, ...] | None = None
    """Those with labels by default, without a few that docs/methods.md names."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """The first one also tries the grid."""
    budget_seeds: tuple[int, ...] | None = None
    """Seeds at the same budget; all by default."""
    grid: tuple[float, ...] = (1 / 3, 1.0, 3.0)
    """Learning rates as multiples of the default."""
    extend: int = 2
    """How often a method's grid may grow by a step while its best rate is at an edge."""
    rank: int = 8
    """Of every method in the first table."""
    budget: int | None = None
    """Trained parameters in the second table; None takes what poly trains at the rank."""
    base: str = "minilm"
    train_examples: int = 120
    """Of each task, drawn by the seed."""
    valid_examples: int = 60
    """Of each task, drawn by the seed."""
    epochs: int = 3
    batch_size: int = 16
    max_length: int = 128
    """Tokens of a text at most."""
    jobs: int = 1
    """Processes at once, each with one thread if there are several."""
    retry: bool = False
    """Try again what has failed."""
    report_only: bool = False
    """Train nothing; the table of what is there."""


def plan(ladder: Ladder, options: Options) -> Iterator[Job]:
    """All runs as far as they can be known by now, in the order in which they are wanted."""
    for method in options.methods:
        yield from jobs(ladder, options, method, ladder.size(method, options.rank), options.seeds)
    seeds = options.seeds if options.budget_seeds is None else options.budget_seeds
    for method in options.methods:
        yield from jobs(ladder, options, method, ladder.size(method, options.rank, options.budget), seeds)


def grid(ladder: Ladder, options: Options, method: str, size: Size) -> list[Job]:
    """The runs that choose a method's rate at a size; beyond an edge of the grid while the best is there."""
    tried = [Job(method, size, multiple, options.seeds[0]) for multiple in sorted(options.grid)]
    for _ in range(options.extend if len(tried) > 1 else 0):
        best = _best(ladder, tried)
        if best == tried[-1].multiple:
            tried.append(replace(tried[-1], multiple=best * best / tried[-2].multiple))
        elif best == tried[0].multiple:
            tried.insert(0, replace(tried[0], multiple=best * best / tried[1].multiple))
    return tried


def chosen(ladder: Ladder, options: Options, method: str, size: Size) -> float | None:
    """The multiple that is best on validation (the smallest on a tie), or None before all were tried."""
    return _best(ladder, grid(ladder, options, method, size))


def _best(ladder: Ladder, tried: Sequence[Job]) -> float | None:
    found = {job.multiple: value for job in tried if (value := ladder.validation(job)) is not None}
    if not found or not all(ladder.done(job) for job in tried):
        return None
    return max(sorted(found), key=lambda multiple: found[multiple])


def jobs(ladder: Ladder, options: Options, method: str, size: Size, seeds: Sequence[int]) -> list[Job]:
    """A method's runs at one size: its grid, and once that is done its seeds."""
    tried = grid(ladder, options, method, size)
    multiple = chosen(ladder, options, method, size)
    return tried + [Job(method, size, multiple, seed, test=True) for seed in seeds if multiple is not None]
