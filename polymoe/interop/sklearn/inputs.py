"""What goes into an estimator, checked: the tasks of the samples, and texts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from sklearn.utils.validation import column_or_1d

ONE_TASK = "all"
"""Name of the task of samples that were given without one."""


def split_column(x: Any, column: int | str | None) -> tuple[Any, Any]:
    """``x`` without its column of tasks, and that column; ``x`` as it is and None where there is none.

    ``column``: a position, or a name where x has named columns. ValueError for one that is not there, or for
    an x of one dimension.
    """
    if column is None:
        return x, None
    names = None if getattr(x, "columns", None) is None else [str(name) for name in x.columns]
    table = np.asarray(x, dtype=object)
    if table.ndim != 2:
        raise ValueError(f"task_column: expected X of two dimensions, got {table.ndim}")
    if isinstance(column, str):
        if names is None or column not in names:
            known = "columns without names" if names is None else names
            raise ValueError(f"task_column: expected one of the columns of X, {known}, got {column!r}")
        place = names.index(column)
    else:
        place = int(column)
        if not -table.shape[1] <= place < table.shape[1]:
            raise ValueError(f"task_column: expected one of the {table.shape[1]} columns of X, got {place}")
    return np.delete(table, place, axis=1), table[:, place]


def task_names(task_ids: Any, n: int) -> list[str]:
    """The name of the task of each of n samples; ``task_ids``: names or whole numbers, one for all or one
    each. ValueError for another number of them, TypeError for anything that is neither."""
    array = np.asarray(task_ids)
    if array.ndim == 0:
        array = np.full(n, array, dtype=array.dtype)
    if array.shape != (n,):
        raise ValueError(f"task_ids: expected shape ({n},), got {array.shape}")
    return [_name(value) for value in array.tolist()]


def _name(value: Any) -> str:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and float(value).is_integer():
        return str(int(value))
    raise TypeError(f"task_ids: expected names or whole numbers, got {value!r}")


def in_order(names: Iterable[str]) -> list[str]:
    """The distinct names in order; numbers by their size."""
    distinct = set(names)
    numbers = all(name.lstrip("-").isdigit() for name in distinct)
    return sorted(distinct, key=int) if numbers else sorted(distinct)


def as_texts(x: Any) -> list[str]:
    """The texts in x, a sequence of strings or a table of one column. TypeError for anything else in it,
    ValueError for none at all."""
    if isinstance(x, str):
        raise TypeError("X: expected a sequence of texts, got a text")
    array = np.asarray(x, dtype=object)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ValueError(
            f"X: expected texts, one each (task_column names a column of tasks), got shape {array.shape}"
        )
    if not array.size:
        raise ValueError("X: expected at least one text, got none")
    for i, text in enumerate(array):
        if not isinstance(text, str):
            raise TypeError(f"X[{i}]: expected a text, got {type(text).__name__} {text!r}")
    return [str(text) for text in array]


def check_outputs(y: Any, n: int) -> np.ndarray:
    """What each of n texts should give, [n]. ValueError for None and for another number of them."""
    if y is None:
        raise ValueError("y: expected what each text should give, got None")
    found: np.ndarray = column_or_1d(y, warn=True)
    if len(found) != n:
        raise ValueError(f"y: expected shape ({n},), got {found.shape}")
    return found
