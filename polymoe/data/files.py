"""Reading task files, JSON lines and Natural Instructions. Errors name the file and the line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from polymoe.data.examples import Example, make_example, task_name
from polymoe.data.splits import SPLITS, WHOLE


def read_jsonl(path: Path) -> Iterator[tuple[Any, str]]:
    """Each line's value and where it stands ("file:line"); blank lines are skipped.

    ValueError for a broken line, for bytes that are not UTF-8, and for a file without a line.
    """
    found = False
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            text = _utf8(line, path, number)
            if text.strip():
                found = True
                yield _json(text, path, number), f"{path}:{number}"
    if not found:
        raise ValueError(f"{path}: expected at least one example, got an empty file")


def read_task_file(path: Path, task: str, part: str) -> list[Example]:
    """The examples of a NAME.train.jsonl (or valid, or test) file."""
    return [
        make_example(record, task, part, row, where) for row, (record, where) in enumerate(read_jsonl(path))
    ]


def read_natural_instructions(
    path: Path, task: str
) -> tuple[list[Example], str, tuple[tuple[str, str], ...]]:
    """Examples, definition and positive examples of a Natural Instructions file.

    An object with Instances [{id, input, output}] and Definition. An output is a string or a list of
    references; the definition a string or a list of lines, and may be absent, as may be "Positive Examples"
    [{input, output}].
    """
    with open(path, "rb") as file:
        content = _json(_utf8(file.read(), path, 1), path, 1)
    instances = content.get("Instances") if isinstance(content, dict) else None
    if not isinstance(instances, list):
        raise ValueError(f"{path}: expected a Natural Instructions file, an object with a list of Instances")
    if not instances:
        raise ValueError(f"{path}: expected at least one example, got no Instances")
    definition = content.get("Definition", "")
    lines = definition if isinstance(definition, list) else [definition]
    if not all(isinstance(line, str) for line in lines):
        raise TypeError(
            f"{path}: Definition: expected a string or a list of them, got {type(definition).__name__}"
        )
    examples = [make_example(x, task, WHOLE, i, f"{path}: instance {i}") for i, x in enumerate(instances)]
    shown = content.get("Positive Examples", [])
    if not isinstance(shown, list):
        raise TypeError(f"{path}: Positive Examples: expected a list, got {type(shown).__name__}")
    positive = [make_example(x, task, WHOLE, i, f"{path}: positive example {i}") for i, x in enumerate(shown)]
    return examples, "\n".join(lines), tuple((x.input, x.output) for x in positive)


def split_name(value: Any, where: str) -> str:
    """Our name of a split; ValueError for an unknown one."""
    if not isinstance(value, str) or value not in SPLITS:
        raise ValueError(f"{where}: split: expected one of {list(SPLITS)}, got {value!r}")
    return SPLITS[value]


def record_task(record: Any, where: str) -> str:
    """The ``task`` field of a record."""
    if not isinstance(record, Mapping) or "task" not in record:
        shown = list(record) if isinstance(record, Mapping) else type(record).__name__
        raise ValueError(f"{where}: expected an object with fields task, input and output, got {shown}")
    return task_name(record["task"], where)


def _utf8(raw: bytes, path: Path, first_line: int) -> str:
    try:
        return raw.decode("utf-8-sig" if first_line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        line = first_line + raw[: error.start].count(b"\n")
        raise ValueError(f"{path}:{line}: expected UTF-8 text, got byte 0x{raw[error.start]:02x}") from error


def _json(text: str, path: Path, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{path}:{first_line + error.lineno - 1}"
        raise ValueError(
            f"{where}: expected JSON, got an error at column {error.colno}: {error.msg}"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of too many digits, lists nested too deep
        raise ValueError(f"{path}:{first_line}: expected JSON that Python can hold: {error}") from error
