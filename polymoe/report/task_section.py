"""The sections of a page about tasks: which are routed alike, and which pull the same way."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from polymoe.adapters import measures
from polymoe.report.inspection import Inspection
from polymoe.report.markup import (
    fold,
    heat,
    table,
)
from polymoe.report.routing import RoutingStatistics
from polymoe.report.tree import TaskTree, task_tree

NEAREST = 3


def tasks(inspection: Inspection, anchor: str) -> str:
    """Dendrogram, nearest tasks, similarities."""
    statistics = inspection.statistics
    if statistics is None or not inspection.routes or len(statistics.tasks) < 2:
        return ""
    order = task_order(statistics)
    names = [statistics.tasks[t] for t in order]
    try:
        tree = _tree(statistics.tasks, task_tree(statistics.similarity))
    except ImportError:
        tree = "<p>No dendrogram: it needs scipy (<code>pip install 'polymoe[plots]'</code>).</p>"
    similar = statistics.similarity[np.ix_(order, order)]
    matrix = heat("Cosine of two tasks' routing", "task", names, names, similar, triangle=True)
    return (
        f"{tree}{nearest(statistics)}{fold('All similarities', matrix)}"
        "<p>Such cosines are high in any case, for weights are positive: read the order, not the number.</p>"
    )


def nearest(statistics: RoutingStatistics) -> str:
    """The nearest tasks of each."""
    if len(statistics.tasks) < 2:
        return ""
    similar = statistics.similarity
    rows = []
    for t, name in enumerate(statistics.tasks):
        others = measures.nearest(similar, t)[:NEAREST]
        rows.append([name, ", ".join(f"{statistics.tasks[o]} {similar[t, o]:.3f}" for o in others)])
    return table("Nearest tasks by routing (cosine)", ["task", "nearest"], rows)


def gradients(inspection: Inspection, anchor: str) -> str:
    """The cosines of the tasks' gradients."""
    found = inspection.gradients
    if found is None:
        return ""
    order = list(range(len(found.tasks)))
    if inspection.statistics is not None and set(inspection.statistics.tasks) == set(found.tasks):
        order = [found.tasks.index(inspection.statistics.tasks[t]) for t in task_order(inspection.statistics)]
    names = [found.tasks[t] for t in order]
    values = found.cosines[np.ix_(order, order)]
    matrix = heat("Cosine of two tasks' gradients", "task", names, names, values, triangle=True)
    return (
        f"<p>Of the experts' parameters, over up to {found.n_texts} training texts a task: above 0 (blue) "
        f"two tasks pull the same way, below 0 (orange) against each other.</p>{matrix}"
    )


def task_order(statistics: RoutingStatistics) -> np.ndarray:
    """Tasks as the dendrogram has them, like beside like; as they are without scipy."""
    try:
        return task_tree(statistics.similarity).order
    except (ImportError, ValueError):
        return np.arange(len(statistics.tasks))


def _tree(names: Sequence[str], tree: TaskTree) -> str:
    """The dendrogram: brackets in a box that stretches, its leaves as a list beside it."""
    n, top = len(names), max(float(tree.heights.max()), 1e-9)
    paths = "".join(
        "M"
        + "L".join(f"{100 - 98 * h / top:.4g} {(p + 0.5) / n * 100:.4g}" for h, p in zip(x, y, strict=True))
        for x, y in zip(tree.heights, tree.places, strict=True)
    )
    leaves = "".join(f"<li>{escape(names[t])}" for t in tree.order)
    joins = [
        [" + ".join(names[t] for t in left), " + ".join(names[t] for t in right), f"{distance:.3f}"]
        for left, right, distance in tree.members()
    ]
    caption = "Tasks as they are joined, the nearest first"
    label = "Dendrogram of the tasks; the table below says the same"
    return (
        f'<figure class="tree"><figcaption>Dendrogram (average linkage of 1 - cosine)</figcaption>'
        f'<div class="branches"><div class="box"><svg viewBox="0 0 100 100" preserveAspectRatio="none" '
        f'role="img" aria-label="{label}"><path d="{paths}"/></svg></div><ol>{leaves}</ol>'
        f'<p aria-hidden="true"><span>{top:.3f}</span><span>0</span></p></div>'
        f"{fold('as a table', table(caption, ['these', 'with these', 'distance'], joins))}</figure>"
    )
