"""Where tasks come from: a folder, a file, or Python objects. :func:`read_tasks` takes them all."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from polymoe.data.examples import Example, TaskData, make_example, task_name
from polymoe.data.files import read_jsonl, read_natural_instructions, read_task_file, record_task, split_name
from polymoe.data.splits import SPLITS, WHOLE, split_task


class Parts(NamedTuple):
    """A task as it was given: examples by part ("train", "valid", "test" or "all"), its instruction and what
    is shown beside it."""

    examples: dict[str, list[Example]]
    definition: str = ""
    demonstrations: tuple[tuple[str, str], ...] = ()


# Task name -> what reads it: a file is opened only when its task is wanted.
Sources = dict[str, Callable[[], Parts]]


def read_tasks(
    source: Any, tasks: Iterable[str] | None = None, *, seed: int = 0, require: Collection[str] = ()
) -> dict[str, TaskData]:
    """Read tasks and split them.

    :func:`~polymoe.data.splits.split_task` says how; ``seed`` draws what is held out. ``source`` is one of

    - a folder: each NAME.train.jsonl / NAME.valid.jsonl / NAME.test.jsonl (lines ``{"input": str, "output":
      str or number}``) or Natural Instructions NAME.json is a task; other kinds of files are left alone;
    - a .jsonl file whose lines also have a ``task`` and perhaps a ``split``, or one Natural Instructions
      .json file;
    - a list of such paths;
    - ``{name: Path}``: the task of that name in such a folder or file;
    - ``{name: examples}`` or ``{name: {split: examples}}``, the examples ``(input, output)`` pairs or objects
      as above;
    - an iterable of objects as in the .jsonl file, or ``{split: iterable}`` of them (a mapping is read so
      when all its keys are names of splits);
    - a ``datasets.Dataset`` or ``DatasetDict``, in the place of any iterable or mapping above (a ClassLabel
      gives the names of its labels).

    Examples without a split are training examples. ``tasks`` selects, and gives the order (otherwise: by name
    for files, as they come for objects); only the files of selected tasks are read. ``require`` names the
    splits that may not be empty.

    Raises FileNotFoundError, KeyError for an unknown task (it lists the known ones), ValueError or TypeError
    for anything wrong in the data, with file and line.

    >>> read_tasks({"greet": [("hello", "yes"), ("stone", "no"), ("good day", "yes")]})
    {'greet': TaskData('greet', train=2, valid=1, test=0)}
    """
    known = _sources(source)
    result = {}
    for name in _select(tasks, known):
        parts = known[name]()
        task = split_task(name, parts.examples, seed, parts.definition, parts.demonstrations)
        for split in require:
            if not task.split(split):
                raise ValueError(f"{name}: expected {split} examples, got {task!r}")
        result[name] = task
    return result


def _select(tasks: Iterable[str] | None, known: Collection[str]) -> list[str]:
    if tasks is None:
        return list(known)
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    for name in names:
        if name not in known:
            raise KeyError(f"task: expected one of {list(known)}, got {name!r}")
    if not names or len(set(names)) != len(names):
        raise ValueError(f"tasks: expected distinct names of tasks, got {names}")
    return names


def _sources(source: Any) -> Sources:
    if isinstance(source, str | os.PathLike):
        return _from_path(Path(source))
    if isinstance(source, list | tuple) and source and all(isinstance(s, str | os.PathLike) for s in source):
        return _from_paths([Path(s) for s in source])
    if isinstance(source, Mapping):
        if not source:
            raise ValueError("data: expected at least one task, got an empty mapping")
        if all(key in SPLITS for key in source):
            return _from_records(
                (part, item) for part, rows in source.items() for item in _rows(rows, f"data[{part!r}]")
            )
        return {task_name(name, "data"): partial(_from_named, name, value) for name, value in source.items()}
    return _from_records((None, item) for item in _rows(source, "data"))


def _from_paths(paths: list[Path]) -> Sources:
    merged: Sources = {}
    for path in paths:
        found = _from_path(path)
        for name in found:
            if name in merged:
                raise ValueError(f"{path}: expected distinct names of tasks, got {name!r} twice")
        merged.update(found)
    return merged


def _from_path(path: Path) -> Sources:
    if path.is_dir():
        return _from_folder(path)
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: expected a folder of tasks, a .jsonl or a .json file, got nothing there"
        )
    if path.suffix == ".json":
        return {path.stem: partial(_from_natural_instructions, path.stem, path)}
    if path.suffix != ".jsonl":
        raise ValueError(f"{path}: expected a folder of tasks, a .jsonl or a .json file")
    return _from_records((None, item) for item in read_jsonl(path))


def _from_folder(folder: Path) -> Sources:
    files: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_file():
            continue
        if path.suffix == ".jsonl":
            name, dot, split = path.stem.rpartition(".")
            if not dot or split not in SPLITS:
                raise ValueError(
                    f"{path}: expected NAME.train.jsonl, NAME.valid.jsonl or NAME.test.jsonl in a folder "
                    "(a file whose lines name their task is read by giving its own path)"
                )
            part = SPLITS[split]
        elif path.suffix == ".json":
            name, part = path.stem, WHOLE
        else:
            continue
        parts = files.setdefault(task_name(name, path), {})
        if part in parts or (parts and WHOLE in (part, *parts)):
            raise ValueError(f"{path}: expected one source for each task, got {name!r} twice")
        parts[part] = path
    if not files:
        raise ValueError(f"{folder}: expected NAME.train.jsonl or Natural Instructions .json files, got none")
    return {name: partial(_from_task_files, name, parts) for name, parts in sorted(files.items())}


def _from_task_files(name: str, files: Mapping[str, Path]) -> Parts:
    if WHOLE in files:
        return _from_natural_instructions(name, files[WHOLE])
    return Parts({part: read_task_file(path, name, part) for part, path in files.items()})


def _from_natural_instructions(name: str, path: Path) -> Parts:
    examples, definition, demonstrations = read_natural_instructions(path, name)
    return Parts({WHOLE: examples}, definition, demonstrations)


def _from_named(name: str, value: Any) -> Parts:
    """One task as it stands in a mapping of tasks: where it is, or its examples."""
    if isinstance(value, os.PathLike):
        known = _from_path(Path(value))
        return known[_select([name], known)[0]]()
    return _from_examples(name, value)


def _from_examples(name: str, value: Any) -> Parts:
    """One task as Python objects: examples, or splits of examples."""
    given = value if isinstance(value, Mapping) else {"train": value}
    parts: dict[str, list[Example]] = {}
    for key, rows in given.items():
        where = f"data[{name!r}][{key!r}]" if given is value else f"data[{name!r}]"
        part = split_name(key, where)
        if part in parts:
            raise ValueError(f"{where}: expected each split once, got {part!r} twice")
        parts[part] = [make_example(row, name, part, i, at) for i, (row, at) in enumerate(_rows(rows, where))]
        if not parts[part]:
            raise ValueError(f"{where}: expected at least one example, got none")
    if not parts:
        raise ValueError(f"data[{name!r}]: expected at least one split, got none")
    return Parts(parts)


def _from_records(records: Iterable[tuple[str | None, tuple[Any, str]]]) -> Sources:
    """Tasks named by their records; each record comes with its split (None: it says so) and where it is."""
    tasks: dict[str, dict[str, list[Example]]] = {}
    for given, (record, where) in records:
        name = record_task(record, where)
        part = split_name(given if given is not None else record.get("split", "train"), where)
        examples = tasks.setdefault(name, {}).setdefault(part, [])
        examples.append(make_example(record, name, part, len(examples), where))
    if not tasks:
        raise ValueError("data: expected at least one example, got none")
    return {name: partial(Parts, parts) for name, parts in tasks.items()}


def _rows(rows: Any, where: str) -> Iterable[tuple[Any, str]]:
    if isinstance(rows, str | bytes | Mapping) or not isinstance(rows, Iterable):
        raise TypeError(f"{where}: expected an iterable of examples, got {type(rows).__name__}")
    names = getattr((getattr(rows, "features", None) or {}).get("output"), "names", None)
    return ((_named(row, names), f"{where}[{i}]") for i, row in enumerate(rows))


def _named(row: Any, names: Sequence[str] | None) -> Any:
    """A row whose output is a ClassLabel, with the label's name; None where it has no label (-1)."""
    if names is None:
        return row
    number = row["output"]
    return {**row, "output": names[number] if isinstance(number, int) and number >= 0 else None}
