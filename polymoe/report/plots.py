"""The report as matplotlib figures (extra ``plots``); each function returns a new Figure, and shows nothing.

polymoe.report.plots.heatmap(found).savefig("heatmap.png")
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from polymoe.report.curves import Curve, Curves, read_curves
from polymoe.report.routing import RoutingStatistics
from polymoe.report.tree import task_tree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUMBERED = 400
"""Cells of a heatmap that have their numbers written in."""


def heatmap(statistics: RoutingStatistics, router: str | None = None, head: int | None = None) -> Figure:
    """Tasks x skills: the weights of a router (by name) and head, means over all where none is named.

    Raises KeyError for an unknown router, IndexError for an unknown head, ValueError for a mean over routers
    with different numbers of skills.
    """
    if router is None:
        weights, where = statistics.weights.mean(axis=1), f"mean of {len(statistics.routers)} routers"
    elif router not in statistics.router_names:
        raise KeyError(f"router: expected one of {list(statistics.router_names)}, got {router!r}")
    else:
        weights, where = statistics.routers[statistics.router_names.index(router)].weights, router
    n_heads = weights.shape[1]
    if head is not None and not 0 <= head < n_heads:
        raise IndexError(f"head: expected 0 to {n_heads - 1}, got {head}")
    shown = weights.mean(axis=1) if head is None else weights[:, head]
    n_tasks, n_skills = shown.shape
    heads = "" if n_heads == 1 else ", mean of heads" if head is None else f", head {head}"
    title = f"Weights, {where}{heads}"
    figure = _figure(max(2 + 0.5 * n_skills, 0.085 * len(title)), 1.2 + 0.32 * n_tasks)
    figure.suptitle(title, size="medium")
    axes = figure.add_subplot()
    negative = bool((shown < 0).any())
    most = float(np.abs(shown).max()) or 1.0
    image = axes.imshow(
        shown, cmap="PuOr" if negative else "cividis", vmin=-most if negative else 0, vmax=most, aspect="auto"
    )
    axes.set_xticks(range(n_skills))
    axes.set_yticks(range(n_tasks), [_plain(task) for task in statistics.tasks])
    axes.set_xlabel("skill")
    if shown.size <= NUMBERED:
        for (t, s), value in np.ndenumerate(shown):
            light = abs(value) < most / 2 if negative else value > most / 2
            axes.text(s, t, f"{value:.2f}", ha="center", va="center", size=7, color="k" if light else "w")
    figure.colorbar(image)
    return figure


def dendrogram(statistics: RoutingStatistics) -> Figure:
    """The tasks, joined by average linkage of one minus the cosine of their routing. ValueError for fewer
    than two tasks."""
    tree = task_tree(statistics.similarity)
    figure = _figure(6, 1.2 + 0.3 * len(tree.order))
    axes = figure.add_subplot()
    for heights, places in zip(tree.heights, tree.places, strict=True):
        axes.plot(heights, places, color="C0")
    axes.set_yticks(range(len(tree.order)), [_plain(statistics.tasks[task]) for task in tree.order])
    axes.yaxis.tick_right()
    axes.set_ylim(len(tree.order) - 0.5, -0.5)
    axes.set_xlim(float(tree.heights.max()) * 1.02 or 1.0, 0)
    axes.set_xlabel("1 - cosine")
    axes.spines[["top", "left", "right"]].set_visible(False)
    return figure


def curves(run: Curves | str | os.PathLike[str]) -> Figure:
    """Loss, metrics of validation and measures of the routing over steps; ``run``: its curves or its folder.
    ValueError where there are none."""
    found = run if isinstance(run, Curves) else read_curves(os.path.join(run, "metrics.jsonl"))
    shares = {name: c for name, c in found.routing.items() if name in ("entropy", "usage", "discreteness")}
    parts: dict[str, dict[str, Curve]] = {
        "training loss": {"loss": found.loss} if len(found.loss) else {},
        "validation": dict(found.metrics),
        "routing": shares,
    }
    parts = {title: series for title, series in parts.items() if series}
    if not parts:
        raise ValueError("run: expected curves (metrics.jsonl), got none")
    figure = _figure(4.2 * len(parts), 3.2)
    styles = ("-", "--", ":", "-.")
    for i, (title, series) in enumerate(parts.items()):
        axes = figure.add_subplot(1, len(parts), i + 1)
        for k, (name, curve) in enumerate(series.items()):
            marker = "o" if len(curve) == 1 else None
            axes.plot(
                curve.steps,
                curve.values,
                styles[k % len(styles)],
                label=name.replace("_", " "),
                marker=marker,
            )
        axes.set_title(title)
        axes.set_xlabel("step")
        if len(series) > 1:
            axes.legend()
    return figure


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("matplotlib: expected the extra polymoe[plots] for figures, got none") from error
    return Figure(figsize=(width, height), layout="constrained")


def _plain(name: str) -> str:
    """A name without what matplotlib would read as mathematics."""
    return name.replace("$", r"\$")
