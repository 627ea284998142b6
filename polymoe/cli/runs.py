"""Verbs that make and use runs: ``train``, ``evaluate``, ``predict``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from inspect import cleandoc
from pathlib import Path
from typing import Any

import tyro

import polymoe
from polymoe.cli.flags import CONFIG, parse_flags
from polymoe.cli.show import print_json, say, show_evaluation, show_summary
from polymoe.recipe import Recipe
from polymoe.training import load_run
from polymoe.training.objectives import Lm


@dataclass(frozen=True)
class Output:
    """The folder that a run is written to."""

    output: str = "run"
    """Folder for the adapter, checkpoints and metrics."""
    resume: bool = False
    """Go on where the run in this folder stopped."""
    overwrite: bool = False
    """Replace the run in this folder."""
    json: bool = False
    """Print the summary as JSON."""


@dataclass(frozen=True)
class Evaluate:
    """Evaluate a run on the test part of its own data, or of other data."""

    run: tyro.conf.Positional[str]
    """Folder of the run."""
    data: str | None = None
    """Folder or file with tasks; the run's own by default."""
    tasks: tuple[str, ...] | None = None
    """Tasks to evaluate; all by default."""
    split: str = "test"
    """Part of the data: train, valid or test."""
    base: str | None = None
    """Where the base is now, if it has moved."""
    batch_invariant: bool = False
    """Every text gives the same bits whatever the others are."""
    json: bool = False
    """Print the evaluation as JSON."""


@dataclass(frozen=True)
class Predict:
    """Print what a run says of each text, one line each."""

    run: tyro.conf.Positional[str]
    """Folder of the run."""
    task: str
    """Which task the texts belong to."""
    input: tuple[str, ...] = ()
    """The texts; lines of stdin when there are none."""
    candidates: tuple[str, ...] | None = None
    """Outputs to choose from (objectives match and lm), in place of the task's own."""
    base: str | None = None
    """Where the base is now, if it has moved."""
    batch_invariant: bool = False
    """Every text gives the same bits whatever the others are."""
    json: bool = False
    """Print a JSON object per line: input, output, score and the scores of all choices."""


def train(argv: Sequence[str]) -> None:
    """Train one adapter on many tasks.

    Settings come from RECIPE.yaml if one is named, with --resume from the run itself, and from flags,
    which win.

        polymoe train [RECIPE.yaml] [OPTIONS]
    """

    @dataclass(frozen=True)
    class Train:
        recipe: Recipe
        out: Output

    def parse(flags: Sequence[str], recipe: Recipe) -> Train:
        default = Train(recipe, Output())
        return tyro.cli(
            Train,
            args=flags,
            default=default,
            prog="polymoe train",
            description=cleandoc(train.__doc__ or ""),
            config=CONFIG,
        )

    if argv and not argv[0].startswith("-"):
        parsed = parse(argv[1:], Recipe.from_yaml(argv[0]))
    else:
        parsed = parse(argv, Recipe())
        if parsed.out.resume:
            parsed = parse(argv, Recipe.from_yaml(Path(parsed.out.output) / "recipe.yaml"))
    out = parsed.out
    summary = parsed.recipe.train(out.output, resume=out.resume, overwrite=out.overwrite)
    if out.json:
        print_json(summary)
    else:
        show_summary(summary, out.output)
        use = usage_of(summary, out.output, "NAME", "TEXT")
        say(f"\nnext:\n  polymoe evaluate {out.output}\n  {use}")


def usage_of(summary: dict[str, Any], output: str, task: str, text: str) -> str:
    """The command that uses a run on a text."""
    writes = summary["objective"] == Lm.name
    verb, flag = ("generate", "--prompt") if writes else ("predict", "--input")
    return f"polymoe {verb} {output} --task {task} {flag} {text}"


def evaluate(argv: Sequence[str]) -> None:
    """Evaluate a run."""
    options = parse_flags(Evaluate, argv, "evaluate")
    with polymoe.batch_invariant(options.batch_invariant or None):
        evaluation = load_run(options.run, options.base).evaluate(options.data, options.split, options.tasks)
    if options.json:
        print_json(evaluation)
    else:
        show_evaluation(evaluation, None, f"{options.run}: {options.split}")


def predict(argv: Sequence[str]) -> None:
    """Predict outputs of texts."""
    options = parse_flags(Predict, argv, "predict")
    run = load_run(options.run, options.base)
    run.model.tasks.id(options.task)  # an unknown task is told before stdin is waited for
    texts = list(options.input) or [line.rstrip("\r\n") for line in sys.stdin]
    with polymoe.batch_invariant(options.batch_invariant or None):
        predictions = run.predict(texts, options.task, options.candidates)
    for text, prediction in zip(texts, predictions, strict=True):
        if options.json:
            print_json({"input": text, **asdict(prediction)}, indent=None)
        else:
            print(prediction.output)
