"""Does training help? Each method against a linear head on the frozen features.

    python -m benchmarks.accuracy DATA ...

For each collection of tasks (a folder), method and seed it trains as `polymoe train --data DATA
--method METHOD --seed SEED` does, with nothing else set but what is said here. The rival is scikit-
learn's logistic regression on the embeddings of the frozen base, one per task, regularised as is
best on the same validation split, which the seed draws. Runs that are there already are not run
again, so an interrupted table goes on where it stopped. Prints Markdown.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro

import polymoe
from benchmarks.scores import gain, linear_head, percent
from polymoe.data import Tokenizer, has_labels, read_tasks
from polymoe.recipe import Recipe


@dataclass(frozen=True)
class Options:
    """Accuracy of methods and of a linear head on the frozen features, over several seeds."""

    data: tyro.conf.Positional[tuple[str, ...]]
    """Folders of tasks; those whose outputs are labels are taken."""
    output: str = "runs/accuracy"
    """Where the runs are kept."""
    methods: tuple[str, ...] = ("poly", "mhr")
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = 2
    max_length: int | None = None
    """Tokens of a text at most, for all of them alike; None takes the base's own limit."""
    base: str = "minilm"


def trained(options: Options, data: str, names: list[str], method: str, seed: int) -> dict[str, float]:
    """Test accuracy by task of a run; it is trained unless its folder says that it was."""
    folder = Path(options.output) / Path(data).name / f"{method}-{seed}"
    if not (folder / "summary.json").exists():
        recipe = Recipe(data=data, base=options.base, method=method, tasks=tuple(names))
        training = replace(recipe.training, epochs=options.epochs, seed=seed, max_length=options.max_length)
        recipe = replace(recipe, training=training)
        started = (folder / "recipe.yaml").exists()
        recipe.trainer(folder).train(resume=started)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return {name: values["accuracy"] for name, values in summary["evaluation"]["tasks"].items()}


def table(rows: dict[str, list[dict[str, float]]], names: list[str]) -> str:
    """Markdown: a row a method, a column a task; percent, mean and standard deviation over the seeds."""

    lines = ["| method | " + " | ".join(names) + " | **mean** |", "|---" * (len(names) + 2) + "|"]
    for method, seeds in rows.items():
        means = [float(np.mean([seed[name] for name in names])) for seed in seeds]
        cells = [percent([seed[name] for seed in seeds]) for name in names]
        lines.append(f"| {method} | " + " | ".join(cells) + f" | **{percent(means)}** |")
    rival = [float(np.mean(list(seed.values()))) for seed in rows["linear head"]]
    for method, seeds in rows.items():
        if method != "linear head" and len(seeds) > 1:
            points, error = gain([float(np.mean(list(seed.values()))) for seed in seeds], rival)
            verdict = "above" if points > 2 * error and points > 0 else "NOT above"
            lines.append(
                f"\n{method}: {100 * points:+.1f} points over the linear head, "
                f"standard error {100 * error:.1f}: {verdict} it by more than two standard errors."
            )
    return "\n".join(lines)


def main(options: Options) -> None:
    """Run what is missing and print the tables."""
    base = polymoe.load_base(options.base)
    if options.max_length is not None:
        base.tokenizer = Tokenizer(base.tokenizer.tokenizer, options.max_length, base.tokenizer.prefix)
    for data in options.data:
        names = [name for name, task in read_tasks(data).items() if has_labels(task)]
        rows: dict[str, list[dict[str, float]]] = {"linear head": []}
        cache: dict[str, np.ndarray] = {}
        for seed in options.seeds:
            rows["linear head"].append(linear_head(base, read_tasks(data, names, seed=seed), cache))
        for method in options.methods:
            rows[method] = [trained(options, data, names, method, seed) for seed in options.seeds]
        print(f"\n### {Path(data).name}\n\n{table(rows, names)}\n", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options, config=(tyro.conf.FlagCreatePairsOff,)))
