"""How large an adapter is, and which size is nearest to a budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from polymoe.adapters.methods import METHODS


@dataclass(frozen=True)
class Size:
    """An adapter's rank, its number of skills (None: the method's own), and what it trains; of two stages,
    the larger number.
    """

    r: int
    n_skills: int | None
    parameters: int


def nearest(
    count: Callable[[int, int | None], int | None], budget: int, skills: int, rank: int = 8, most: int = 128
) -> tuple[int, int | None]:
    """Rank and number of skills whose ``count(rank, skills)`` is nearest to the budget; of several, the one
    whose rank is nearest to ``rank``.

    Ranks go up to ``most`` with the method's own number of skills (None); where rank 1 is above the budget
    already, fewer skills are tried, two at least. A count of None says that a size cannot be.

    >>> nearest(lambda r, s: 100 * r * (s or 4), 1000, 4), nearest(lambda r, s: 100 * r * (s or 4), 290, 4)
    ((2, None), (1, 3))
    """
    least = count(1, None)
    sizes: list[tuple[int, int | None]] = [(r, None) for r in range(1, most + 1)]
    if least is not None and least > budget:
        sizes = [(1, None), *((1, s) for s in range(skills - 1, 1, -1))]
    counts = {size: number for size in sizes if (number := count(*size)) is not None}
    if not counts:
        raise ValueError(f"rank: expected one that the method takes, got none from 1 to {most}")
    return min(counts, key=lambda size: (abs(counts[size] - budget), abs(size[0] - rank)))


def stages(method: str) -> list[str]:
    """The method and those that it comes after."""
    after = METHODS[method].after if method in METHODS else None
    return [method] if after is None else [method, *stages(after)]
