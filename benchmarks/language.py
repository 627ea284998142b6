"""Does a language model learn? Methods with equally many trained parameters, on all tasks at once.

    python -m benchmarks.language DATA
    python -m benchmarks.language DATA --methods poly mhr --seeds 0 1 2

DATA is a folder of Natural Instructions files. Prints ROUGE-L and exact match on test as Markdown, the base
alone beside the methods. Sizes are such that all methods train equally many numbers, within two percent for
ten tasks; the rates are their defaults. Nothing is selected: what is evaluated is what the last step left.
Runs that are there already are not run again, so an interrupted table goes on where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks.scores import percent
from polymoe.adapters.options import AdapterOptions
from polymoe.data import TaskData, draw_shots, read_tasks
from polymoe.data.prompts import TemplateName
from polymoe.recipe import Recipe
from polymoe.training import Trainer, TrainingConfig
from polymoe.training.objectives import Lm, LmOptions

SIZES = {
    "lora": AdapterOptions(r=32),
    "poly": AdapterOptions(r=8, n_skills=4),
    "mhr": AdapterOptions(r=8, n_skills=4),
    "c-poly": AdapterOptions(r=2, n_skills=6),  # and a pair of each task
    "orchmoe": AdapterOptions(r=6, n_skills=5),  # and a router that reads
}
BEFORE = "before"

Rows = dict[str, list[dict[str, Any]]]
"""Summaries of the seeds of each row."""


@dataclass(frozen=True)
class Options:
    """ROUGE-L and exact match of methods on a language model, before and after training."""

    data: tyro.conf.Positional[str]
    """Folder of tasks."""
    output: str = "runs/language"
    """Where the runs are kept."""
    methods: tuple[str, ...] = tuple(SIZES)
    seeds: tuple[int, ...] = (0,)
    base: str = "smollm2"
    template: TemplateName = "chat"
    steps: int = 200
    batch_tokens: int = 384
    max_length: int = 256
    """Tokens of a text; a longer prompt loses the end of its input."""
    valid_examples: int = 10
    """Validation examples of a task at most."""
    eval_examples: int = 20
    """Test examples of a task at most, the same ones in every run."""
    max_new_tokens: int = 40

    def recipe(self, method: str, seed: int) -> Recipe:
        """What a run is set to."""
        lm = LmOptions(self.template, max_new_tokens=self.max_new_tokens, eval_examples=self.eval_examples)
        training = TrainingConfig(
            epochs=0,
            max_steps=self.steps,
            batch_tokens=self.batch_tokens,
            batch_size=None,
            max_length=self.max_length,
            sampling="uniform",
            seed=seed,
        )
        return Recipe(
            data=self.data,
            base=self.base,
            dtype="bfloat16",
            method=method,
            objective="lm",
            adapter=SIZES[method],
            training=training,
            lm=lm,
        )

    def tasks(self, seed: int) -> dict[str, TaskData]:
        """All tasks; of validation a few examples."""
        tasks = read_tasks(self.data, seed=seed)
        return {n: draw_shots(t, len(t.train), self.valid_examples, seed) for n, t in tasks.items()}

    def before(self) -> dict[str, Any]:
        """Summary of the base alone: an adapter that is not trained adds nothing."""
        recipe = self.recipe("lora", 0)
        recipe = replace(recipe, training=replace(recipe.training, max_steps=-1))
        return trained(Path(self.output) / BEFORE, recipe, self.tasks(0))


def started(folder: Path) -> bool:
    """Whether there is a run to go on with."""
    return (folder / "recipe.yaml").exists()


def finished(folder: Path) -> dict[str, Any] | None:
    """The summary of a run that is done."""
    path = folder / "summary.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def trained(folder: Path, recipe: Recipe, tasks: Mapping[str, TaskData]) -> dict[str, Any]:
    """Summary of a run on these tasks; it is trained unless its folder says that it was."""
    if (summary := finished(folder)) is not None:
        return summary
    described = {**recipe.to_dict(), "data": str(Path(recipe.data or "").resolve()), "tasks": list(tasks)}
    model, objective = recipe.adapted(tasks), Lm(recipe.lm)
    trainer = Trainer(model, tasks, objective, recipe.training, folder, recipe=described)
    return trainer.train(resume=started(folder))


def learn(options: Options) -> Rows:
    """All tasks at once: each method and seed."""
    rows = {BEFORE: [options.before()]}
    for seed in options.seeds:
        for method in options.methods:
            folder = Path(options.output) / f"{method}-{seed}"
            summary = trained(folder, options.recipe(method, seed), options.tasks(seed))
            rows.setdefault(method, []).append(summary)
    return rows


def short(task: str) -> str:
    """The word that names a Natural Instructions task: its second."""
    return task.split("_")[1] if "_" in task else task


def scores(rows: Rows) -> str:
    """Markdown: a row a task, a column a method; percent, of several seeds mean and standard deviation. Tasks
    are those that all rows have."""
    names = list(rows[BEFORE][0]["evaluation"]["tasks"])
    for run in (run for runs in rows.values() for run in runs):
        names = [name for name in names if name in run["evaluation"]["tasks"]]
    parts = []
    for title, metric in (("ROUGE-L", "rougeL"), ("Exact match", "exact_match")):
        # [tasks, seeds] of each row
        found = {
            row: np.array([[run["evaluation"]["tasks"][name][metric] for run in runs] for name in names])
            for row, runs in rows.items()
        }
        lines = ["| task | " + " | ".join(found) + " |", "|---" + "|---:" * len(found) + "|"]
        for i, name in enumerate(names):
            lines.append(f"| {short(name)} | " + " | ".join(percent(x[i]) for x in found.values()) + " |")
        means = " | ".join(f"**{percent(x.mean(axis=0))}**" for x in found.values())
        parts.append(f"### {title}\n\n" + "\n".join([*lines, f"| **mean** | {means} |"]))
    return "\n\n".join(parts)


def costs(rows: Rows) -> str:
    """Markdown: how many numbers each method trained, its losses, and what it took."""
    lines = ["| method | trained numbers | validation loss | test loss | tokens | seconds of steps |"]
    lines.append("|---" + "|---:" * 5 + "|")
    for method, runs in rows.items():
        if method == BEFORE:
            continue
        cells = [f"{runs[0]['trainable_parameters']:,}"]
        for part in ("validation", "evaluation"):
            cells.append(" / ".join(f"{run[part]['mean']['loss']:.3f}" for run in runs))
        cells += [f"{np.mean([run['real_tokens'] for run in runs]):,.0f}"]
        cells += [f"{np.mean([run['train_seconds'] for run in runs]):.0f}"]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "### Cost\n\n" + "\n".join(lines)


def main(options: Options) -> None:
    """Run what is missing and print the tables."""
    rows = learn(options)
    print(f"\n{scores(rows)}\n\n{costs(rows)}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options, config=(tyro.conf.FlagCreatePairsOff,)))
