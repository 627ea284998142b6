"""The data of a run: whatever was given as tasks by name, and what tells two data sets apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any

from polymoe.data import EncodedSplit, TaskData, read_tasks


def as_tasks(data: Any, tasks: Iterable[str] | None = None, seed: int = 0) -> dict[str, TaskData]:
    """``data`` as tasks by name: what :func:`polymoe.data.read_tasks` has read, or would read."""
    if isinstance(data, Mapping) and data and all(isinstance(task, TaskData) for task in data.values()):
        names = list(data) if tasks is None else list(tasks)
        for name in names:
            if name not in data:
                raise KeyError(f"task: expected one of {list(data)}, got {name!r}")
        return {name: data[name] for name in names}
    return read_tasks(data, tasks, seed=seed)


def fingerprint(*splits: EncodedSplit) -> str:
    """A hash of all examples: task, id, input and outputs."""
    content = blake2b(digest_size=16)
    for split in splits:
        for e in split.examples:
            content.update(repr((e.task, e.example_id, e.input, e.outputs)).encode())
    return content.hexdigest()
