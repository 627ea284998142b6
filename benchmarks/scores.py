"""What the accuracy tables share: the rival without training, and how numbers are written and compared."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from polymoe.data import Example, TaskData
from polymoe.models import Bert

STRENGTHS = [0.01, 0.1, 1.0, 10.0, 100.0, 1000.0]


def linear_head(base: Bert, tasks: dict[str, TaskData], cache: dict[str, np.ndarray]) -> dict[str, float]:
    """Test accuracy by task of logistic regression on frozen embeddings, at its best on validation."""

    def features(examples: tuple[Example, ...]) -> np.ndarray:
        new = list(dict.fromkeys(e.input for e in examples if e.input not in cache))
        cache.update(zip(new, base.encode(new), strict=True))
        return np.array([cache[e.input] for e in examples])

    result = {}
    for name, task in tasks.items():
        x, v, t = (features(task.split(part)) for part in ("train", "valid", "test"))
        y, z, u = ([e.output for e in task.split(part)] for part in ("train", "valid", "test"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            fitted = [LogisticRegression(C=c, max_iter=2000).fit(x, y) for c in STRENGTHS]
        result[name] = float(max(fitted, key=lambda model: model.score(v, z)).score(t, u))
    return result


def percent(values: Sequence[float]) -> str:
    """Mean and, of more than one value, standard deviation."""
    spread = f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{100 * np.mean(values):.1f}{spread}"


def gain(values: Sequence[float], rival: Sequence[float]) -> tuple[float, float]:
    """Mean of the differences, seed by seed, and its standard error."""
    difference = np.subtract(values, rival)
    return float(difference.mean()), float(np.std(difference, ddof=1) / np.sqrt(len(difference)))


def pooled_error(rows: Sequence[Sequence[float]]) -> float:
    """Standard error of the difference of two rows' means, from what neither row nor seed explains in all.

    ``rows``: accuracies [methods, seeds], two of each at least. Three differences say little about their own
    spread; those of all methods together say more.
    """
    x = np.asarray(rows)
    rest = x - x.mean(1, keepdims=True) - x.mean(0) + x.mean()
    n_rows, n_seeds = x.shape
    return float(np.sqrt(2 * (rest**2).sum() / ((n_rows - 1) * (n_seeds - 1)) / n_seeds))
