"""What the outputs of a task are: a set of labels, numbers, or free text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from polymoe.data.examples import Example, TaskData


def labels(task: TaskData) -> tuple[str, ...]:
    """The distinct outputs of train and validation, sorted.

    Validation belongs to it because it is cut from train by a seed, and the labels may not depend on a seed.
    ValueError if there is one label only.
    """
    found = sorted({example.output for example in _known(task)})
    if len(found) < 2:
        raise ValueError(f"{task.name}: expected at least two different outputs, got {found}")
    return tuple(found)


def label_ids(examples: Sequence[Example], labels: Sequence[str]) -> np.ndarray:
    """[n] int64, the position of each output among ``labels``; -1 for one that is not there (never right)."""
    position = {label: i for i, label in enumerate(labels)}
    return np.array([position.get(example.output, -1) for example in examples], dtype=np.int64)


def has_labels(task: TaskData) -> bool:
    """Whether the outputs look like a set of labels rather than free text.

    With K distinct outputs among the n examples of train and validation they do if K <= 20 and each occurs
    twice on average (2 K <= n), or if K <= 200 and each occurs five times on average (5 K <= n).
    """
    examples = _known(task)
    n, k = len(examples), len({example.output for example in examples})
    return (k <= 20 and 2 * k <= n) or (k <= 200 and 5 * k <= n)


def numbers(examples: Iterable[Example]) -> np.ndarray:
    """[n] float64, the outputs as numbers; ValueError with task and line for an output that is none."""
    return np.array([_number(example) for example in examples], dtype=np.float64)


def _number(example: Example) -> float:
    try:
        value = float(example.output)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(
            f"{example.task}: {example.where}: output: expected a finite number, got {example.output!r}"
        )
    return value


def _known(task: TaskData) -> tuple[Example, ...]:
    return task.train + task.valid
