"""``adapt``: a run learns one more task from a few examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from inspect import cleandoc
from typing import Any, Literal

import tyro

from polymoe.adapters.extend import Tune
from polymoe.cli.flags import CONFIG
from polymoe.cli.show import print_json, say, show_summary
from polymoe.training import FewShot, RunFolder, TrainingConfig
from polymoe.training.few_shot import DEFAULTS


@dataclass(frozen=True)
class Adapt:
    """Flags of ``adapt``; the fields that :class:`FewShot` has mean the same."""

    run: tyro.conf.Positional[str | None] = None
    """Folder of the run that learns one more task; it stays as it is."""
    task: str | None = None
    """Name of the new task."""
    data: str | None = None
    """Folder or file with the new task; the run's own data by default."""
    tune: Tune = "router"
    """What is trained beside the new task's head. router: what is the task's own, such as its row of the
    router (old tasks keep every bit). all: that and the skills. mu: all skills, under a uniform router for
    every task. head: nothing, the new task weighs all skills alike. Where the router does not go by task, a
    new task has no row: all, mu or head.
    """
    shots: int | Literal["all"] = 32
    """Training examples, drawn by the seed so that every label has its share; or all."""
    n_valid: int | None = None
    """Validation examples at most; as many as shots by default."""
    base: str | None = None
    """Where the base is now, if it has moved."""
    training: TrainingConfig = field(default=DEFAULTS)
    output: str | None = None
    """Folder of the new run; RUN/adapted/TASK by default."""
    resume: bool = False
    """Go on where the run in --output stopped; settings are its own."""
    overwrite: bool = False
    """Replace the run in the output folder."""
    json: bool = False
    """Print the summary as JSON."""


def adapt(argv: Sequence[str]) -> None:
    """Teach a finished run one more task from a few examples.

    The run stays as it is. The new run knows its tasks and the new one; evaluate and predict take it as any
    other. The nearest known tasks are those that the learnt router treats most alike.

        polymoe adapt RUN --task NEW --data FILE [OPTIONS]
    """
    options = _parse(argv, Adapt())
    if options.resume:
        if options.output is None:
            raise ValueError("output: expected the folder of the run to go on with, got None")
        settings = FewShot.from_recipe(RunFolder(options.output).read_recipe())
        given = {
            name: getattr(settings, name) for name in ("run", "task", "data", "tune", "shots", "n_valid")
        }
        options = _parse(argv, Adapt(**given, training=settings.training))
    settings = _settings(options)
    output = settings.output if options.output is None else options.output
    summary = settings.train(output, resume=options.resume, overwrite=options.overwrite, base=options.base)
    if options.json:
        print_json(summary)
        return
    show_summary(summary, str(output))
    if nearest := summary["adaptation"]["nearest_tasks"]:
        best = list(nearest.items())[:3]
        say("routed most like: " + ", ".join(f"{name} ({cosine:.2f})" for name, cosine in best))
    say(
        f"\nnext:\n  polymoe evaluate {output}\n"
        f"  polymoe predict {output} --task {settings.task} --input TEXT"
    )


def _parse(argv: Sequence[str], default: Adapt) -> Adapt:
    description = cleandoc(adapt.__doc__ or "")
    return tyro.cli(
        Adapt, args=argv, default=default, prog="polymoe adapt", description=description, config=CONFIG
    )


def _settings(options: Adapt) -> FewShot:
    if options.run is None:
        raise ValueError("run: expected the folder of a run, got None")
    if options.task is None:
        raise ValueError("task: expected the name of the new task, got None")
    given: dict[str, Any] = {"tune": options.tune, "shots": options.shots, "n_valid": options.n_valid}
    return FewShot(options.run, options.task, options.data, **given, training=options.training)
