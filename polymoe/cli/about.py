"""Verbs that need no run: ``methods`` and ``info``."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

import polymoe
from polymoe.adapters.catalog import LETTERS, catalog
from polymoe.cli.flags import parse_flags
from polymoe.cli.show import print_json, say, show_table
from polymoe.models import load_base
from polymoe.training.summary import versions


@dataclass(frozen=True)
class Info:
    """Say what this installation runs on: versions, instruction set, threads, OpenMP runtime, memory."""

    json: bool = False
    """Print it as JSON."""


@dataclass(frozen=True)
class Methods:
    """List the methods: their parts, what they need, and how much each trains."""

    base: str | None = None
    """Count parameters on this base: a folder, "minilm", or a name on the hub."""
    n_tasks: int = 8
    """Number of tasks T in that count."""
    target_modules: str | tuple[str, ...] | None = None
    """Modules that get an adapter in that count; by default those that `polymoe train` adapts."""
    r: int | None = None
    """Rank; each method's own by default."""
    json: bool = False
    """Print the rows as JSON."""


def info(argv: Sequence[str]) -> None:
    """Say what this installation runs on."""
    options = parse_flags(Info, argv, "info")
    facts: dict[str, Any] = {
        **versions(),
        "platform": platform.platform(),
        "isa": polymoe.get_isa(),
        "isas": polymoe.isas(),
        "threads": polymoe.get_num_threads(),
        "openmp": polymoe.openmp(),
        **memory(),
    }
    if options.json:
        print_json(facts)
        return
    if facts["openmp"] == "none":
        facts["openmp"] = "none (built without OpenMP: one thread)"
    for name, value in facts.items():
        if name.endswith("_bytes"):
            name, value = name.removesuffix("_bytes"), f"{value / 2**30:.1f} GiB"
        print(f"{name:18s} {', '.join(value) if isinstance(value, list) else value}")


def methods(argv: Sequence[str]) -> None:
    """List the methods."""
    options = parse_flags(Methods, argv, "methods")
    overrides = {} if options.r is None else {"r": options.r}
    base = None if options.base is None else load_base(options.base)
    rows = catalog(base, options.n_tasks, target_modules=options.target_modules, **overrides)
    if options.json:
        print_json(rows)
        return
    columns = ("method", "router", "experts", "mixing", "needs", "r", "skills", "trains in a layer")
    table = Table(*columns, *["parameters"] * (base is not None))
    for row in rows:
        keys = ("method", "router", "experts", "mixing", "needs", "r", "n_skills", "formula")
        count = [] if base is None else [f"{row['parameters']:,}"]
        table.add_row(*(str(row[key]) for key in keys), *count)
    show_table(table, 140)
    say(LETTERS)


def memory() -> dict[str, int]:
    """Bytes of memory: of the machine, and free for use; what the system does not tell is left out."""
    names = {"memory_bytes": "SC_PHYS_PAGES", "memory_free_bytes": "SC_AVPHYS_PAGES"}
    try:
        return {name: os.sysconf(key) * os.sysconf("SC_PAGE_SIZE") for name, key in names.items()}
    except (AttributeError, ValueError, OSError):
        return {}
