"""The one place that says what is train, validation and test.

Selection reads validation only; test is for the final word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from polymoe.data.examples import Example, TaskData
from polymoe.data.order import shuffled

SPLITS = {"train": "train", "valid": "valid", "validation": "valid", "dev": "valid", "test": "test"}
"""Names that data use for their splits, and what we call them."""

WHOLE = "all"
"""The part of a task that comes in one piece (a Natural Instructions file)."""


def split_task(
    name: str,
    parts: Mapping[str, Sequence[Example]],
    seed: int = 0,
    definition: str = "",
    demonstrations: tuple[tuple[str, str], ...] = (),
) -> TaskData:
    """Split a task that was given as any of the parts "train", "valid", "test", or as the one part "all".

    - "all": test is the last min(100, n // 4) examples, train the rest.
    - Without "valid": a tenth of train (at least one example), drawn by (seed, task name) and nothing else,
      is held out.

    Every split keeps the order of the data. A task with "test" alone can be evaluated, not trained. Raises
    ValueError when train has one example and another one would be needed for validation.
    """
    train, test = list(parts.get("train", ())), list(parts.get("test", ()))
    if WHOLE in parts:
        whole = list(parts[WHOLE])
        n_train = len(whole) - min(100, len(whole) // 4)
        train, test = whole[:n_train], whole[n_train:]
    valid = list(parts.get("valid", ()))
    if train and not valid:
        if len(train) < 2:
            raise ValueError(
                f"{name}: expected at least 2 training examples (one is held out for validation), got 1"
            )
        held_out = set(shuffled(len(train), seed, "held out", name)[: max(1, len(train) // 10)].tolist())
        valid = [example for i, example in enumerate(train) if i in held_out]
        train = [example for i, example in enumerate(train) if i not in held_out]
    return TaskData(name, tuple(train), tuple(valid), tuple(test), definition, demonstrations)
