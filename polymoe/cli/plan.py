"""The verb ``plan``: what a run will take, and what to set."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from inspect import cleandoc
from typing import Any

import tyro
from rich.table import Table

from polymoe.cli.flags import CONFIG
from polymoe.cli.show import print_json, say, show_table
from polymoe.recipe import Recipe
from polymoe.training.plan import Plan

MIB = 2**20


@dataclass(frozen=True)
class Planned:
    """A run that is not made."""

    recipe: Recipe = field(default_factory=Recipe)
    json: bool = False
    """Print the plan as JSON."""


def plan(argv: Sequence[str]) -> None:
    """Say what training will take: memory, time, and what to set. No weight is read and nothing is written.

    Settings are those of `polymoe train`.

        polymoe plan [RECIPE.yaml] [OPTIONS]
    """
    named = bool(argv) and not argv[0].startswith("-")
    default = Planned(Recipe.from_yaml(argv[0]) if named else Recipe())
    flags = argv[1:] if named else argv
    description = cleandoc(plan.__doc__ or "")
    parsed = tyro.cli(
        Planned, args=flags, default=default, prog="polymoe plan", description=description, config=CONFIG
    )
    found = parsed.recipe.plan()
    if parsed.json:
        print_json(asdict(found))
    else:
        show(found)


def show(plan: Plan) -> None:
    """The table and the recommendation, for people."""
    table = Table("MiB", *(c.dtype + ", recomputed" * c.gradient_checkpointing for c in plan.costs))
    for column in table.columns[1:]:
        column.justify = "right"
    rows = {
        "frozen weights": "weights",
        "adapter, gradients, moments": "adapter",
        "activations": "activations",
        "the largest temporary": "temporary",
        "texts that are written": "writing",
        "process and data": "process",
    }
    if not (writes := any(c.evaluation_seconds for c in plan.costs)):
        del rows["texts that are written"]
    for name, key in rows.items():
        table.add_row(name, *(f"{getattr(c, key) / MIB:,.0f}" for c in plan.costs))
    table.add_section()
    table.add_row("at most", *(f"{c.bytes / MIB:,.0f}" for c in plan.costs), end_section=True)
    table.add_row("seconds a step", *(f"{c.step_seconds:.2f}" for c in plan.costs))
    table.add_row("seconds an epoch", *(f"{c.epoch_seconds:,.0f}" for c in plan.costs))
    if writes:
        evaluations = (f"{c.evaluation_seconds:,.0f}" for c in plan.costs)
        table.add_row("seconds evaluating, at most", *evaluations)
    show_table(table)
    threads = f"{plan.threads} thread" + "s" * (plan.threads != 1)
    free = "" if plan.free_bytes is None else f", {plan.free_bytes / MIB:,.0f} MiB free"
    say(
        f"{plan.method} on {plan.base}: {plan.trainable_parameters:,} trainable parameters, "
        f"{plan.steps} steps ({plan.steps_per_epoch} an epoch),\n"
        f"up to {plan.batch_tokens:,} tokens a batch, {threads}{free}\n"
        f"recommended: {flags(plan.recommended) or 'a smaller base'}\n({plan.reason})"
    )
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > (os.cpu_count() or 1) / 2:
        say("others compute on this machine now: seconds may be too many")


def flags(settings: Mapping[str, Any]) -> str:
    """Settings as they stand on the command line."""
    given = {f"--{name.replace('_', '-')}": value for name, value in settings.items() if value is not False}
    return " ".join(flag if value is True else f"{flag} {value}" for flag, value in given.items())
