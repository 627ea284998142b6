"""What a run was asked for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """``isas``: best first; the first is that of every row that names no other."""

    threads: int
    isas: tuple[str, ...]
    rounds: int
    quick: bool = False
    torch: bool = False
