"""A few examples of a task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from polymoe.data.examples import Example, TaskData
from polymoe.data.order import shuffled


def draw_shots(task: TaskData, shots: int, n_valid: int | None = None, seed: int = 0) -> TaskData:
    """The task with ``shots`` of its training examples, and at most ``n_valid`` of validation (as many as
    shots by default). Test stays as it is.

    Both are drawn by (seed, task name): every output gets one while there are enough, the others come in
    proportion. Raises ValueError for more shots than training examples, or less than one.
    """
    n = len(task.train)
    if isinstance(shots, bool) or not isinstance(shots, int):
        raise TypeError(f"shots: expected an integer, got {shots!r}")
    if not 1 <= shots <= n:
        raise ValueError(f"shots: expected 1 to {n} (the training examples of {task.name}), got {shots}")
    n_valid = shots if n_valid is None else n_valid
    if n_valid < 1:
        raise ValueError(f"n_valid: expected at least 1, got {n_valid}")
    return replace(
        task,
        train=_draw(task.train, shots, seed, "shots", task.name),
        valid=_draw(task.valid, n_valid, seed, "validation shots", task.name),
    )


def draw_test(task: TaskData, n: int | None) -> TaskData:
    """The task with at most ``n`` of its test examples (None: all), drawn by the task's name alone."""
    if n is None or n >= len(task.test):
        return task
    kept = sorted(shuffled(len(task.test), "test", task.name)[:n].tolist())
    return replace(task, test=tuple(task.test[i] for i in kept))


def _draw(examples: Sequence[Example], n: int, *key: str | int) -> tuple[Example, ...]:
    """n of the examples, in their order; the outputs as near to their shares as the first rule allows."""
    sizes = Counter(example.output for example in examples)
    met: Counter[str] = Counter()
    places: list[tuple[float, int, int]] = []
    for i in shuffled(len(examples), *key).tolist():
        output = examples[i].output
        # The j-th of m stands at (j + 1/2) / m of the way, the first of each before all others.
        places.append(((met[output] + 0.5) / sizes[output] if met[output] else 0.0, len(places), i))
        met[output] += 1
    return tuple(examples[i] for i in sorted(i for _, _, i in sorted(places)[:n]))
