"""What is printed: JSON for machines, tables for people."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from polymoe.training.metrics import Evaluation


def print_json(value: Any, indent: int | None = 2) -> None:
    """One JSON value on stdout."""
    print(json.dumps(value, indent=indent, ensure_ascii=False))


def say(text: str) -> None:
    """Plain text on stdout, as it is."""
    print(text)


def show_summary(summary: dict[str, Any], output: str) -> None:
    """What a run came to, for people."""
    if summary["evaluation"] is not None:
        title = f"{summary['evaluated_split']}, {summary['objective']}"
        if summary["eval_examples"] is not None:
            title += f", at most {summary['eval_examples']} texts of a task"
        show_evaluation(summary["evaluation"], summary["evaluation_before"], title)
    cut = sum(summary["truncated_texts"].values())
    facts = [
        f"{summary['steps']} steps in {summary['train_seconds']:.1f} s",
        f"{summary['tokens_per_second']:,.0f} tokens/s",
        f"{summary['trainable_parameters']:,} trainable parameters",
        f"frozen weights in {summary['dtype']}",
        f"peak memory {summary['peak_rss_bytes'] / 2**20:,.0f} MiB",
    ]
    say(", ".join(facts + [f"{cut} texts cut to the length that the base takes"] * bool(cut)))
    say(f"run: {output}")


def show_evaluation(evaluation: Evaluation, before: Evaluation | None, title: str) -> None:
    """A table: a row a task, a column a metric, and what the first metric and ROUGE-L were before training
    where that is known."""
    metrics = list(evaluation["mean"])
    compared = [m for m in metrics if before and m in (metrics[0], "rougeL")]
    table = Table(title=title, title_justify="left")
    table.add_column("task")
    for name in metrics:
        if name in compared:
            table.add_column(f"{name} before".replace("_", " "), justify="right")
        table.add_column(name.replace("_", " "), justify="right")
    table.add_column("n", justify="right")
    rows = [*evaluation["tasks"].items(), ("mean", evaluation["mean"])]
    for task, values in rows:
        cells = []
        for metric in metrics:
            if before and metric in compared:
                cells.append(_cell(before["mean"] if task == "mean" else before["tasks"][task], metric))
            cells.append(_cell(values, metric))
        table.add_row(task, *cells, str(values.get("n", "")), end_section=task == rows[-2][0])
    show_table(table)


def _cell(values: dict[str, float], metric: str) -> str:
    return f"{values[metric]:.3f}" if metric in values else ""


def show_table(table: Table, width: int = 100) -> None:
    """A table, as wide as the terminal, or ``width`` where there is none."""
    Console(width=None if sys.stdout.isatty() else width).print(table)
