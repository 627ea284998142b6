"""The verb ``inspect``: what an adapter is and what its router learnt, in the terminal or as a page."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from polymoe.adapters.statistics import RouterStatistics, reads_texts
from polymoe.cli.flags import parse_flags
from polymoe.cli.folders import look_into
from polymoe.cli.show import print_json, say
from polymoe.data import read_tasks
from polymoe.report import Inspection, RoutingStatistics, TextRouting, gradient_similarity, write_page
from polymoe.report import inspect as inspect_model
from polymoe.report.facts import describe_parts
from polymoe.report.html import check_target

TOKENS = 10
"""Columns of a table of tokens."""
SKILLS = 12
"""Columns of a table of skills; of more, the most used are named."""


@dataclass(frozen=True)
class Inspect:
    """Show what an adapter is made of and what its router learnt."""

    path: tyro.conf.Positional[str]
    """A run, or the folder of an adapter (ours, or PEFT's LoRA, Poly or IA3). Its base need not be here."""
    text: str | None = None
    """Show how this text is routed, token by token where the router reads tokens."""
    task: str | None = None
    """The task of that text."""
    layers: bool = False
    """A table for each router, beside their mean."""
    data: str | None = None
    """Folder or file with texts for a router that reads them; a run's own by default."""
    split: str = "valid"
    """Part of the data: train, valid or test."""
    base: str | None = None
    """Where the base is, if the folder does not say or it has moved."""
    html: str | None = None
    """Write all of it as a page: a file of HTML that needs no network."""
    against: str | None = None
    """Another run or adapter, beside this one on the page."""
    gradients: bool = False
    """Also how the tasks' gradients agree (of a run; a forward and backward over 64 texts a task)."""
    overwrite: bool = False
    """Let the page replace a file that is none."""
    json: bool = False
    """Print everything as JSON, all arrays included."""


def inspect(argv: Sequence[str]) -> None:
    """Show an adapter."""
    options = parse_flags(Inspect, argv, "inspect")
    if options.task is not None and options.text is None:
        raise ValueError("task: expected a text beside it (--text), got none")
    if options.against is not None and options.html is None:
        raise ValueError("against: expected a page to show both on (--html), got none")
    if options.html is not None:
        check_target(Path(options.html), options.overwrite)
    found = _look(options, options.path)
    if options.html is not None:
        others = [] if options.against is None else [_look(options, options.against)]
        page = write_page(options.html, [found, *others], overwrite=options.overwrite)
    if options.json:
        parts = {"routing": found.statistics, "text": found.text, "gradients": found.gradients}
        if not options.gradients:
            del parts["gradients"]
        print_json(found.facts | {name: None if x is None else x.to_dict() for name, x in parts.items()})
    elif options.html is not None:
        say(f"page: {page} ({page.stat().st_size / 1000:,.0f} kB)")
    else:
        _show(Console(width=None if sys.stdout.isatty() else 120, highlight=False), options, found)


def _look(options: Inspect, path: str) -> Inspection:
    """What there is to see of a run or an adapter."""
    model, run, why = look_into(path, options.base)
    if why:
        note = f"the base is not here ({why}): layers go by their names, and texts cannot be run"
        print(f"polymoe inspect: {note}", file=sys.stderr)
    texts = _texts(options, {} if run is None else run.recipe) if reads_texts(model.adapter) else {}
    gradients = None
    if options.gradients:
        if run is None:
            raise ValueError(f"gradients: expected a run, got the adapter {path}")
        gradients = gradient_similarity(run, options.data)
    return inspect_model(
        model if run is None else run,
        texts or None,
        text=options.text,
        task=options.task,
        name=path,
        gradients=gradients,
    )


def _show(console: Console, options: Inspect, found: Inspection) -> None:
    """In the terminal."""
    _show_parts(console, found.name, found.facts)
    if found.statistics is None:
        say("\nrouting: by text; name some with --data, or one with --text")
    elif found.routes:
        _show_routing(console, found.statistics, options.layers)
    else:
        say("\nrouting: none, one pair for everybody")
    if found.gradients is not None:
        tasks = found.gradients.tasks
        table = Table(title="cosines of the tasks' gradients", title_justify="left")
        for column in ("task", *tasks):
            table.add_column(escape(column))
        for task, row in zip(tasks, found.gradients.cosines, strict=True):
            table.add_row(escape(task), *map(_two, row))
        console.print(table)
    if found.text is not None:
        _show_text(console, found.text)


def _texts(options: Inspect, recipe: dict[str, Any]) -> dict[str, list[str]]:
    """The texts by task that a router is asked about; none where nothing names any."""
    if options.data is not None:
        tasks = read_tasks(options.data)
    elif recipe.get("data") is not None:
        seed = recipe.get("training", {}).get("seed", 0)
        tasks = read_tasks(recipe["data"], recipe.get("tasks"), seed=seed)
    else:
        return {}
    found = {name: [example.input for example in task.split(options.split)] for name, task in tasks.items()}
    if not any(found.values()):
        raise ValueError(f"split: expected texts in {options.split}, got none")
    return {name: texts for name, texts in found.items() if texts}


def _show_parts(console: Console, path: str, parts: dict[str, Any]) -> None:
    base = parts["base"] or "an unnamed base"
    say(f"{path}: {parts['method']} on {base}, {parts['parameters']:,} parameters")
    say(describe_parts(parts))
    if parts["tasks"]:
        say(f"tasks: {', '.join(parts['tasks'])}")
    table = Table("layers", "number", "in routers", "in experts")
    for column in table.columns[1:]:
        column.justify = "right"
    for kind, row in parts["layers"].items():
        table.add_row(escape(kind), str(row["layers"]), f"{row['router']:,}", f"{row['experts']:,}")
    console.print(table)


def _show_routing(console: Console, statistics: RoutingStatistics, layers: bool) -> None:
    """Measures, tasks x skills, nearest tasks."""
    say("\n" + _measures(statistics.summary()))
    if statistics.tokens.any():
        say(f"read: {statistics.tokens.sum():,} tokens of {len(statistics.tasks)} tasks")
    for size, weights in statistics.by_size().items():
        if size > 1:
            title = f"weights, mean of {weights.shape[1]} routers" + " and their heads" * (
                weights.shape[2] > 1
            )
            _show_weights(console, title, statistics.tasks, weights.mean(axis=(1, 2)))
    for router in statistics.routers if layers else ():
        _show_router(console, statistics.tasks, router)
    if len(statistics.tasks) > 1:
        table = Table("task", "nearest by routing (cosine)", title="nearest tasks", title_justify="left")
        for task in statistics.tasks:
            near = ", ".join(f"{other} {cosine:.3f}" for other, cosine in statistics.nearest(task, 3))
            table.add_row(escape(task), escape(near))
        console.print(table)


def _show_router(console: Console, tasks: Sequence[str], router: RouterStatistics) -> None:
    others = f" (also {len(router.layers) - 1} other layers)" if len(router.layers) > 1 else ""
    say(f"\n{router.name}{others}: {_measures(router.summary())}")
    for head, weights in enumerate(np.moveaxis(router.weights, 1, 0)):
        _show_weights(console, f"head {head}" if router.weights.shape[1] > 1 else None, tasks, weights)


def _show_weights(console: Console, title: str | None, tasks: Sequence[str], weights: np.ndarray) -> None:
    """A table tasks x skills, the most used skill of each task set off; of many skills the most used."""
    n_skills = weights.shape[1]
    table = Table(title=title, title_justify="left")
    table.add_column("task", no_wrap=True)
    for column in range(n_skills) if n_skills <= SKILLS else [f"most used of {n_skills} skills"]:
        table.add_column(str(column), justify="right" if n_skills <= SKILLS else "left")
    for task, row in zip(tasks, weights, strict=True):
        if n_skills <= SKILLS:
            cells = [f"[bold]{_two(w)}[/]" if w == row.max() else _two(w) for w in row]
        else:
            cells = [", ".join(f"{s}: {_two(row[s])}" for s in np.argsort(-np.abs(row), kind="stable")[:6])]
        table.add_row(escape(task), *cells)
    console.print(table)


def _show_text(console: Console, text: TextRouting) -> None:
    """Where the router reads tokens: routers x tokens, the experts of each by falling weight (of many, the
    first with its weight). Else a line for each router: its most used skills."""
    title = f"text: {text.text}" + (f" ({text.task})" if text.task else "")
    say(f"\n{title}")
    by_token = [router for router in text.routers if router.axis == "token"]
    for start in range(0, len(text.tokens) if by_token else 0, TOKENS):
        part = slice(start, start + TOKENS)
        table = Table("router", *map(escape, text.tokens[part]))
        for router in by_token:
            table.add_row(escape(router.name), *_experts(router.ids[part], router.weights[part]))
        console.print(table)
    for router in text.routers:
        if router.axis != "token":
            row = router.weights[0].mean(axis=0)
            used = (f"{s}: {_two(row[s])}" for s in router.ids[0][:6])
            say(f"{router.name}  {', '.join(used)}")


def _experts(ids: np.ndarray, weights: np.ndarray) -> list[str]:
    if ids.shape[1] <= 3:
        return [",".join(map(str, row)) for row in ids]
    return [f"{row[0]} {abs(w[:, row[0]]).mean():.2f}" for row, w in zip(ids, weights, strict=True)]


def _two(weight: float) -> str:
    """Two digits, and no sign before a zero."""
    return f"{round(float(weight), 2) + 0.0:.2f}"


def _measures(summary: dict[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in summary.items())
