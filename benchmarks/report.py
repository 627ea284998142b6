"""The table of methods out of its runs: Markdown, JSON and, with matplotlib, a plot."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from benchmarks.ladder import Ladder, Size
from benchmarks.plan import Options, chosen, grid, jobs
from benchmarks.scores import gain, linear_head, percent, pooled_error
from polymoe.data import Tokenizer, read_tasks
from polymoe.files import read_json, write_bytes, write_json
from polymoe.training.summary import versions

RIVAL = "lora"


@dataclass
class Row:
    """A method in one table; ``scores``: accuracy by seed and task."""

    method: str
    size: Size | None = None
    multiple: float | None = None
    learning_rate: float | None = None
    scale: float | None = None
    trained: int | None = None
    """Numbers trained, the heads of the tasks included."""
    scores: dict[int, dict[str, float]] = field(default_factory=dict)
    validation: dict[int, float] = field(default_factory=dict)
    tried: dict[str, float | None] = field(default_factory=dict)
    at_edge: bool = False
    tokens_per_second: float | None = None
    failures: dict[str, str] = field(default_factory=dict)
    gain: float | None = None
    error: float | None = None
    verdict: str = ""

    @property
    def means(self) -> list[float]:
        """Mean accuracy over tasks, seed by seed."""
        return [float(np.mean(list(tasks.values()))) for tasks in self.scores.values()]


def report(ladder: Ladder, options: Options) -> int:
    """Write and print what is known so far; 1 if a run failed, else 0."""
    tasks = list(ladder.settings.tasks)
    budget_seeds = options.seeds if options.budget_seeds is None else options.budget_seeds
    frozen = Row("linear head", scores=frozen_scores(ladder, options))
    parts, content, tables = [], {}, {}
    for name, title, budget, seeds in (
        ("same rank", f"Rank {options.rank}", None, options.seeds),
        ("same budget", f"{options.budget:,} trained parameters", options.budget, budget_seeds),
    ):
        rows = [collect(ladder, options, method, budget, seeds) for method in options.methods]
        error = compare(rows, len(seeds))
        parts.append(f"## {title}\n\n{table([frozen, *rows], tasks, len(seeds), error)}")
        content[name] = {"title": title, "pooled_error": error, "rows": [as_json(row) for row in rows]}
        tables[title] = rows
    text = "\n\n".join(parts) + "\n"
    write_bytes(ladder.path / "methods.md", text.encode())
    settings = {**asdict(options), "tasks": tasks}
    frozen_json = {"linear head": as_json(frozen)}
    write_json(
        ladder.path / "methods.json",
        {"options": settings, "versions": versions(), **frozen_json, "tables": content},
    )
    if importlib.util.find_spec("matplotlib"):
        from benchmarks.plot import plot

        plot(ladder.path / "methods.svg", tables, float(np.mean(frozen.means)))
    print(text, flush=True)
    return int(any(row.failures for rows in tables.values() for row in rows))


def frozen_scores(ladder: Ladder, options: Options) -> dict[int, dict[str, float]]:
    """Accuracy of a linear head on the frozen base by seed and task, on the very same texts."""
    scores: dict[int, dict[str, float]] = {}
    cache: dict[str, np.ndarray] = {}
    base, tasks = ladder.base, ladder.settings.tasks
    base.tokenizer = Tokenizer(
        base.tokenizer.tokenizer,
        min(base.tokenizer.max_length, ladder.settings.max_length),
        base.tokenizer.prefix,
    )
    for seed in options.seeds:
        file = ladder.path / f"linear-head-{seed}.json"
        if not file.exists():
            known = read_tasks(ladder.texts(seed), tasks)
            test = read_tasks(ladder.test_texts(), tasks)
            parts = {name: replace(known[name], test=test[name].test) for name in tasks}
            write_json(file, linear_head(base, parts, cache))
        scores[seed] = read_json(file)
    return scores


def collect(ladder: Ladder, options: Options, method: str, budget: int | None, seeds: tuple[int, ...]) -> Row:
    """What the runs of a method came to."""
    size = ladder.size(method, options.rank, budget)
    row = Row(method, size, chosen(ladder, options, method, size))
    tried = grid(ladder, options, method, size)
    row.tried = {f"{job.multiple:.3g}": ladder.validation(job) for job in tried}
    row.at_edge = row.multiple in (tried[0].multiple, tried[-1].multiple)
    for job in jobs(ladder, options, method, size, seeds):
        if (why := ladder.failed(job)) is not None:
            row.failures[job.name] = why
        summary, test = ladder.read(job, "summary"), ladder.read(job, "test")
        if summary is not None:
            row.tokens_per_second = max(row.tokens_per_second or 0.0, summary["tokens_per_second"])
            row.trained = summary["trainable_parameters"]
        if job.test and summary is not None and test is not None:
            row.learning_rate, row.scale = ladder.rate(job)
            row.validation[job.seed] = summary["evaluation"]["mean"]["accuracy"]
            row.scores[job.seed] = {name: values["accuracy"] for name, values in test["tasks"].items()}
    return row


def compare(rows: list[Row], n_seeds: int) -> float | None:
    """Set each row's gain over shared LoRA; the standard error pooled over all complete rows, or None."""
    complete = [row for row in rows if len(row.scores) == n_seeds > 1]
    rival = next((row for row in complete if row.method == RIVAL), None)
    pooled = pooled_error([row.means for row in complete]) if len(complete) > 1 else None
    for row in complete:
        if rival is not None and pooled is not None and row is not rival:
            row.gain, row.error = gain(row.means, rival.means)
            noise = 2 * max(row.error, pooled)
            row.verdict = "above" if row.gain > noise else "below" if row.gain < -noise else "not above"
    return pooled


def table(rows: list[Row], tasks: list[str], n_seeds: int, error: float | None) -> str:
    """Markdown: a row a method; percent, mean and standard deviation over the seeds."""
    columns = [
        "method",
        "rank",
        "parameters",
        "rate",
        *map(short, tasks),
        "**mean**",
        "to LoRA",
        "",
        "tokens/s",
    ]
    lines = [f"| {' | '.join(columns)} |", f"|---|{'---:|' * (len(columns) - 1)}"]
    for row in rows:
        size = "" if row.size is None else str(row.size.r)
        if row.size is not None and row.size.n_skills is not None:
            size += f" ({row.size.n_skills} skills)"
        scores = list(row.scores.values())
        cells = [percent([seed[task] for seed in scores]) if scores else "" for task in tasks]
        mean = f"**{percent(row.means)}**" if scores else "**failed**" if row.failures else "to come"
        if row.size is not None and scores and len(scores) < n_seeds:
            mean += f" ({len(scores)} of {n_seeds} seeds)"
        difference = "" if row.gain is None else f"{100 * row.gain:+.1f} ± {100 * (row.error or 0):.1f}"
        speed = "" if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}"
        parameters = "" if row.size is None else f"{row.size.parameters:,}"
        rate = "" if row.multiple is None else f"{row.multiple:.2g}"
        cells = [row.method, size, parameters, rate, *cells, mean, difference, row.verdict, speed]
        lines.append(f"| {' | '.join(cells)} |")
    if error is not None:
        lines.append(
            f"\nStandard error of a difference, pooled over all methods: {100 * error:.1f} points. A method "
            "is above (or below) LoRA if it is by two standard errors, the larger of this one and its own."
        )
    edges = [row.method for row in rows if row.at_edge]
    if edges:
        lines.append(f"\nBest at an edge of the grid: {', '.join(edges)}.")
    for row in rows:
        lines += [f"\nFailed: {name}: {' '.join(why.split())[:300]}" for name, why in row.failures.items()]
    return "\n".join(lines)


def short(task: str) -> str:
    """A task's name for the head of a column.

    >>> short("task363_sst2_polarity_classification"), short("cb")
    ('sst2', 'cb')
    """
    return re.sub(r"^task\d+_([^_]+)_.*", r"\1", task)


def as_json(row: Row) -> dict[str, Any]:
    """A row with everything that is known of it."""
    content = asdict(row)
    for name in ("scores", "validation"):
        content[name] = {str(seed): value for seed, value in content[name].items()}
    means = row.means
    content["mean"] = float(np.mean(means)) if means else None
    content["sd"] = float(np.std(means, ddof=1)) if len(means) > 1 else None
    return content
