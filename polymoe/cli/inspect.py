"""The verb ``inspect``: what an adapter is made of and what its router learnt, in the terminal."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from polymoe.adapters import AdaptedModel
from polymoe.adapters.statistics import RouterStatistics, reads_texts
from polymoe.cli.flags import parse_flags
from polymoe.cli.folders import load_folder
from polymoe.cli.show import print_json, say
from polymoe.data import read_tasks
from polymoe.report import RoutingStatistics, TextRouting, routing_statistics, text_routing

TOKENS = 10
"""Columns of a table of tokens."""
SKILLS = 12
"""Columns of a table of skills; of more, the most used are named."""


@dataclass(frozen=True)
class Inspect:
    """Show what an adapter is made of and what its router learnt."""

    path: tyro.conf.Positional[str]
    """A run, or the folder of an adapter (ours, or PEFT's LoRA or Poly)."""
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
    json: bool = False
    """Print everything as JSON, all arrays included."""


def inspect(argv: Sequence[str]) -> None:
    """Show an adapter."""
    options = parse_flags(Inspect, argv, "inspect")
    if options.task is not None and options.text is None:
        raise ValueError("task: expected a text beside it (--text), got none")
    # The base is loaded in every case: it tells the layers and vouches for them by its fingerprint.
    model, run = load_folder(options.path, options.base)
    text = None if options.text is None else text_routing(model, options.text, options.task)
    statistics = None
    if not reads_texts(model.adapter):
        statistics = routing_statistics(model)
    elif texts := _texts(options, {} if run is None else run.recipe):
        statistics = routing_statistics(model, texts)
    parts = _parts(model)
    if options.json:
        routing = None if statistics is None else statistics.to_dict()
        print_json({**parts, "routing": routing, "text": None if text is None else text.to_dict()})
        return
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    _show_parts(console, options.path, parts)
    if statistics is None:
        say("\nrouting: by text; name some with --data, or one with --text")
    elif any(router.n_skills > 1 for router in statistics.routers):
        _show_routing(console, statistics, options.layers)
    else:
        say("\nrouting: none, one pair for everybody")
    if text is not None:
        _show_text(console, text)


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


def _parts(model: AdaptedModel) -> dict[str, Any]:
    """What the adapter is made of; parameters by kind of layer, its number written as *."""
    config, adapter = model.config, model.adapter
    counted: set[int] = set()  # a router that layers share counts once
    kinds: dict[str, dict[str, int]] = {}
    for name, layer in adapter.layers.items():
        row = kinds.setdefault(
            re.sub(r"(?<=\.)\d+(?=\.)", "*", name), {"layers": 0, "router": 0, "experts": 0}
        )
        row["layers"] += 1
        for part in ("router", "experts"):
            for _, p in getattr(layer, part).named_parameters():
                row[part] += 0 if id(p) in counted else p.data.size
                counted.add(id(p))
    fields = ("method", "router", "experts", "mixing", "site", "r", "n_skills", "n_splits", "top_k")
    trained = model.get_nb_trainable_parameters()[0]
    return {
        **{field: getattr(config, field) for field in fields},
        "scale": config.scale(""),
        "router_granularity": config.router_granularity,
        "base": getattr(model.base, "name", None),
        "tasks": list(adapter.tasks.names),
        "parameters": trained,
        "layers": kinds,
    }


def _show_parts(console: Console, path: str, parts: dict[str, Any]) -> None:
    say(f"{path}: {parts['method']} on {parts['base']}, {parts['parameters']:,} parameters")
    sizes = [f"rank {parts['r']}", f"scale {parts['scale']:g}", f"mixing {parts['mixing']}"]
    sizes += [f"{parts['n_splits']} heads"] * (parts["n_splits"] > 1)
    sizes += [f"top {parts['top_k']}"] * (parts["top_k"] is not None)
    sizes += [f"a router for each {parts['router_granularity']}"] * (parts["router_granularity"] != "linear")
    say(f"router {parts['router']}, experts {parts['experts']}: {', '.join(sizes)}")
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
