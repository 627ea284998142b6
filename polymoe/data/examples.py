"""What a task is made of: examples with stable ids, in three splits."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from numbers import Real
from typing import Any


@dataclass(frozen=True, slots=True)
class Example:
    """One text and what it should give.

    ``output`` is the first of the ``outputs``, the accepted references; a number is kept as its shortest
    text. ``example_id`` keys the randomness of a training step: it depends on the task, the part of the data
    and the row there alone, never on which other tasks are read or how the data are split. ``where`` says
    where it came from (file and line), for errors.
    """

    input: str
    output: str
    outputs: tuple[str, ...]
    example_id: int
    task: str
    where: str = field(default="", compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class TaskData:
    """A task: its name, its examples by split, the instruction that came with it ("" if none did), and
    examples to show beside it, (input, output) each."""

    name: str
    train: tuple[Example, ...]
    valid: tuple[Example, ...]
    test: tuple[Example, ...]
    definition: str = ""
    demonstrations: tuple[tuple[str, str], ...] = ()

    def split(self, name: str) -> tuple[Example, ...]:
        """The examples of "train", "valid" or "test"."""
        if name not in ("train", "valid", "test"):
            raise ValueError(f"split: expected train, valid or test, got {name!r}")
        examples: tuple[Example, ...] = getattr(self, name)
        return examples

    def __repr__(self) -> str:
        sizes = f"train={len(self.train)}, valid={len(self.valid)}, test={len(self.test)}"
        return f"TaskData({self.name!r}, {sizes})"


def example_id(task: str, part: str, row: int) -> int:
    """An id in [0, 2^63): 31 bits of a hash of (task, part of the data), then 32 bits of row."""
    high = int.from_bytes(blake2b(f"{task}\0{part}".encode(), digest_size=4).digest(), "little") >> 1
    return high << 32 | row


def make_example(record: Any, task: str, part: str, row: int, where: str) -> Example:
    """An example from an object with ``input`` and ``output``, or from an ``(input, output)`` pair.

    The input is a string, the output a string, a number, or a list of them (all accepted references). White
    space around an output is dropped: it is never what tells two labels apart. Raises ValueError for a
    missing field, a number that is not finite, or text that is not Unicode; TypeError for a wrong type.
    Messages begin with ``where``.
    """
    if isinstance(record, Mapping):
        for name in ("input", "output"):
            if name not in record:
                raise ValueError(f"{where}: expected fields input and output, got {list(record)}")
        text, output = record["input"], record["output"]
    elif isinstance(record, tuple | list) and len(record) == 2:
        text, output = record
    else:
        raise TypeError(f"{where}: expected an object with input and output, got {_describe(record)}")
    if not isinstance(text, str):
        raise TypeError(f"{where}: input: expected a string, got {_describe(text)}")
    references = output if isinstance(output, tuple | list) else (output,)
    if not references:
        raise ValueError(f"{where}: output: expected at least one reference, got an empty list")
    outputs = tuple(_output(reference, where) for reference in references)
    return Example(_unicode(text, where), outputs[0], outputs, example_id(task, part, row), task, where)


def task_name(value: Any, where: str | os.PathLike[str]) -> str:
    """``value`` if it can name a task; TypeError if it is not a string, ValueError if it is empty."""
    if not isinstance(value, str):
        raise TypeError(f"{where}: task: expected a string, got {_describe(value)}")
    if not value.strip():
        raise ValueError(f"{where}: task: expected a name, got {value!r}")
    return _unicode(value, str(where))


def _output(value: Any, where: str) -> str:
    if isinstance(value, str):
        return _unicode(value.strip(), where)
    if not isinstance(value, bool) and isinstance(value, Real):
        if not math.isfinite(value):
            raise ValueError(f"{where}: output: expected a finite number, got {value}")
        return str(value)
    raise TypeError(f"{where}: output: expected a string or a number, got {_describe(value)}")


def _unicode(text: str, where: str) -> str:
    if not text.isascii():
        try:
            text.encode()  # JSON's \ud800 gives strings that no tokenizer takes and no file can hold
        except UnicodeEncodeError as error:
            raise ValueError(f"{where}: expected Unicode text, got half a surrogate pair") from error
    return str(text)


def _describe(value: Any) -> str:
    shown = repr(value)
    return f"{type(value).__name__} {shown if len(shown) <= 60 else shown[:57] + '...'}"
