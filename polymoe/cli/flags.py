"""Flags out of dataclasses: a field is a flag, its docstring the help."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import tyro

CONFIG = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
T = TypeVar("T")


def parse_flags(verb: type[T], argv: Sequence[str], name: str) -> T:
    """The flags of a verb; exits with 0 after --help, with 2 and a line on what was wrong."""
    return tyro.cli(verb, args=argv, prog=f"polymoe {name}", config=CONFIG)
