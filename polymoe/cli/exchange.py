"""Verbs that take adapters elsewhere: ``export``, ``convert``, ``merge``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.table import Table

from polymoe.cli.flags import parse_flags
from polymoe.cli.folders import load_folder
from polymoe.cli.show import print_json, say, show_table
from polymoe.data import read_tasks
from polymoe.interop.convert import convert as convert_lora
from polymoe.interop.convert import read_lora
from polymoe.interop.export import Exported, export_task, folder_name, put_folder
from polymoe.interop.merge import merge as merge_loras


@dataclass(frozen=True)
class Export:
    """Write a task of a run as one LoRA for other libraries, and check what was written."""

    run: tyro.conf.Positional[str]
    """Folder of the run, or of an adapter."""
    task: str | None = None
    """Which task; needed where the method goes by task."""
    all_tasks: bool = False
    """A folder for each task."""
    to: str = "peft"
    """peft, mlx, gguf, or merged: the base with the update added to its weights."""
    output: str | None = None
    """Folder to write; RUN/export/FORMAT/TASK by default. With --all-tasks, the folder of the folders."""
    mean_route: str | None = None
    """For methods whose router reads the text: average it over these texts (a file with a text a line, or
    task data, of which the training part is taken). Not exact; the error is printed."""
    texts: str | None = None
    """What the check is made on, the same kinds of files; shipped texts by default."""
    base: str | None = None
    """Where the base is now, if it has moved."""
    overwrite: bool = False
    """Replace an adapter or a model in the output folder."""
    json: bool = False
    """Print the results as JSON."""


@dataclass(frozen=True)
class Convert:
    """Write a LoRA in another format; no base weights are needed."""

    source: tyro.conf.Positional[str]
    """Folder (PEFT, mlx-lm) or GGUF file."""
    output: tyro.conf.Positional[str]
    """Folder to write."""
    to: str = "peft"
    """peft, mlx or gguf."""
    base: str | None = None
    """The base, of which GGUF needs the config.json; what the source names by default."""
    task: str | None = None
    """Which task of a PEFT Poly folder (its name; task_0, task_1 ... in PEFT's own)."""
    overwrite: bool = False
    """Replace an adapter in the output folder."""
    json: bool = False
    """Print the result as JSON."""


@dataclass(frozen=True)
class Merge:
    """Merge LoRAs of one base into one, and say how far it is from their weighted sum."""

    adapters: tyro.conf.Positional[tuple[str, ...]]
    """Folders of LoRAs, in any format that convert reads."""
    output: str
    """Folder to write, in PEFT's format."""
    weights: tuple[float, ...] | None = None
    """One for each; 1 by default."""
    method: str = "cat"
    """cat (exact), svd (the best of a rank), linear, magnitude_prune, ties, dare_linear (or dare), dare_ties;
    all but linear also with _svd behind, on the updates instead of their factors."""
    rank: int | None = None
    """Rank of svd and whatever ends in it; the largest of the given by default."""
    density: float | None = None
    """Share of the entries that ties, dare and magnitude_prune keep."""
    sign: Literal["total", "frequency"] = "total"
    """Which sign the entries of ties must have: that of their sum, or that most of them have."""
    seed: int = 0
    """Of dare."""
    overwrite: bool = False
    """Replace an adapter in the output folder."""
    json: bool = False
    """Print the result as JSON."""


def export(argv: Sequence[str]) -> None:
    """Export tasks of a run."""
    options = parse_flags(Export, argv, "export")
    if options.all_tasks and options.task is not None:
        raise ValueError(f"task: expected none with --all-tasks, got {options.task!r}")
    model, run = load_folder(options.run, options.base)
    tasks = list(model.tasks.names) if options.all_tasks else [options.task]
    if not tasks:
        raise ValueError("all_tasks: expected an adapter with tasks, got one that knows none")
    folder = Path(options.run, "export", options.to) if options.output is None else Path(options.output)
    results = []
    for task in tasks:
        whole = options.output is not None and not options.all_tasks
        results.append(
            export_task(
                model,
                task,
                options.to,
                folder if whole else folder / folder_name(task),
                texts=None if options.texts is None else _texts(options.texts, task),
                mean_route=None if options.mean_route is None else _texts(options.mean_route, task),
                overwrite=options.overwrite,
            )
        )
    if options.json:
        print_json([asdict(result) | {"output": str(result.output)} for result in results])
        return
    _show(results)
    if run is not None and any(True for _ in run.objective.named_parameters()):
        where = Path(options.run, "adapter")
        say(f"What the objective learnt (heads, scales) is no part of this: it stays in {where}")


def convert(argv: Sequence[str]) -> None:
    """Convert a LoRA."""
    options = parse_flags(Convert, argv, "convert")
    result = convert_lora(
        options.source,
        options.output,
        options.to,
        base=options.base,
        task=options.task,
        overwrite=options.overwrite,
    )
    if options.json:
        print_json(asdict(result) | {"output": str(result.output)})
        return
    say(
        f"{result.source} -> {result.to}: {result.layers} layers, rank {result.rank}, "
        f"updates differ by {result.error:.1g} at most\n{result.output}"
    )


def merge(argv: Sequence[str]) -> None:
    """Merge LoRAs."""
    options = parse_flags(Merge, argv, "merge")
    merged = merge_loras(
        [read_lora(folder) for folder in options.adapters],
        options.weights,
        options.method,
        rank=options.rank,
        density=options.density,
        sign=options.sign,
        seed=options.seed,
    )
    put_folder(Path(options.output), merged.lora.save, options.overwrite)
    rank = max(pair.r for pair in merged.lora.pairs.values())
    if options.json:
        print_json({"output": options.output, "method": options.method, "rank": rank, "error": merged.error})
        return
    say(
        f"{options.method}: {len(merged.lora.pairs)} layers, rank {rank}; the update differs from the "
        f"weighted sum by {merged.error:.2g} of its norm\n{options.output}"
    )


def _texts(path: str, task: str | None) -> list[str]:
    """The lines of a text file, or the training inputs of a task (of all of them) in task data."""
    if Path(path).suffix == ".txt":
        return [line for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    tasks = read_tasks(path)
    if task is not None and task not in tasks:
        raise KeyError(f"{path}: expected data of the task {task!r}, got {', '.join(tasks)}")
    return [example.input for name, data in tasks.items() if task in (None, name) for example in data.train]


def _show(results: list[Exported]) -> None:
    table = Table(title=f"to {results[0].to}, checked on {results[0].n_texts} texts", title_justify="left")
    table.add_column("task")
    for name in ("rank", "error", "adapter moves", "lost"):
        table.add_column(name, justify="right")
    table.add_column("folder", overflow="fold")
    for result in results:
        numbers = (f"{result.error:.1e}", f"{result.moves:.2g}", f"{result.lost:.1e}")
        table.add_row(result.task or "", str(result.rank), *numbers, str(result.output))
    show_table(table)
    if any(not result.exact for result in results):
        say("Mean routes: not exact. lost is the norm of the error over that of what the adapter does.")
