"""Which example comes when.

The order of an epoch is a pure function of (seed, epoch), so a position in it is one integer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from polymoe.data.order import shuffled

Sampling = Literal["proportional", "uniform", "temperature"]


def task_counts(
    sizes: Sequence[int], sampling: Sampling = "proportional", temperature: float = 2.0
) -> np.ndarray:
    """[T] int64, how often each task is drawn in an epoch; the sum is sum(sizes), the length of every epoch.

    A share is proportional to n ("proportional"), to 1 ("uniform"), or to n^(1/temperature) ("temperature": 1
    is proportional, large values approach uniform). Shares are rounded down, and the largest remainders (the
    first on a tie) get what is left.
    """
    n: np.ndarray = np.asarray(sizes, dtype=np.int64)
    if n.ndim != 1 or not n.size or n.min() < 1:
        raise ValueError(f"sizes: expected at least one example in each task, got {list(sizes)}")
    if sampling == "proportional":
        return n
    if sampling == "uniform":
        share = np.ones(n.size)
    elif sampling == "temperature":
        if not 0 < temperature < np.inf:
            raise ValueError(f"temperature: expected a positive number, got {temperature}")
        share = np.exp((np.log(n) - np.log(n.max())) / temperature)
    else:
        raise ValueError(f"sampling: expected proportional, uniform or temperature, got {sampling!r}")
    quota = share / share.sum() * n.sum()
    counts: np.ndarray = np.floor(quota).astype(np.int64)
    largest = np.argsort(counts - quota, kind="stable")
    counts[largest[: n.sum() - counts.sum()]] += 1
    return counts


def epoch_order(
    sizes: Sequence[int],
    *,
    seed: int,
    epoch: int,
    sampling: Sampling = "proportional",
    temperature: float = 2.0,
) -> np.ndarray:
    """[n] int64, the examples of an epoch in order.

    Tasks of ``sizes`` examples stand one after the other in the data. In the epoch tasks come in random
    order, each :func:`task_counts` times. A task's examples come in a random order, none twice before all
    have come; a round that an epoch leaves unfinished goes on in the next one. So "proportional" gives every
    example once.
    """
    counts = task_counts(sizes, sampling, temperature)
    if epoch < 0:
        raise ValueError(f"epoch: expected 0 or more, got {epoch}")
    tasks = np.repeat(np.arange(len(counts)), counts)[shuffled(int(counts.sum()), seed, "tasks", epoch)]
    order = np.empty(len(tasks), dtype=np.int64)
    start = 0
    for t, (n, count) in enumerate(zip(sizes, counts.tolist(), strict=True)):
        order[tasks == t] = start + _rounds(int(n), epoch * count, count, seed, t)
        start += int(n)
    return order


def _rounds(n: int, start: int, count: int, seed: int, task: int) -> np.ndarray:
    """[count] int64, places start .. start + count of endless shuffled rounds through n examples."""
    if not count:
        return np.empty(0, dtype=np.int64)
    first, last = start // n, (start + count - 1) // n
    sequence = np.concatenate([shuffled(n, seed, "examples", task, i) for i in range(first, last + 1)])
    return sequence[start - first * n :][:count]
