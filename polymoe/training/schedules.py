"""Learning-rate schedules: pure functions of the step, with Hugging Face's definitions and names.

Each gives the factor of the base rate for the optimiser step after ``step`` finished ones, so that the
first step of a warm-up has the factor 0 and the last step of a linear decay is the smallest that is not 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable


def _warming(step: int, warmup: int) -> float | None:
    return step / max(1, warmup) if step < warmup else None


def linear(step: int, warmup: int, total: int) -> float:
    """Up from 0 to 1 over ``warmup`` steps, then down to 0 at ``total``."""
    rising = _warming(step, warmup)
    return max(0.0, (total - step) / max(1, total - warmup)) if rising is None else rising


def cosine(step: int, warmup: int, total: int) -> float:
    """Up from 0 to 1 over ``warmup`` steps, then half a cosine down to 0 at ``total``."""
    rising = _warming(step, warmup)
    if rising is not None:
        return rising
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


def constant(step: int, warmup: int, total: int) -> float:
    """Always 1, without a warm-up."""
    return 1.0


def constant_with_warmup(step: int, warmup: int, total: int) -> float:
    """Up from 0 to 1 over ``warmup`` steps, then 1."""
    rising = _warming(step, warmup)
    return 1.0 if rising is None else rising


SCHEDULES: dict[str, Callable[[int, int, int], float]] = {
    "linear": linear,
    "cosine": cosine,
    "constant": constant,
    "constant_with_warmup": constant_with_warmup,
}
