"""The sections of a page: each takes an inspection and gives HTML, empty where there is nothing to show."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from polymoe.adapters import measures
from polymoe.adapters.faults import DEAD
from polymoe.adapters.statistics import RouterStatistics
from polymoe.report.curves import Curve
from polymoe.report.facts import describe_parts
from polymoe.report.inspection import Inspection
from polymoe.report.markup import (
    bar,
    chart,
    describe_list,
    fold,
    heat,
    json_block,
    scroll,
    table,
    thousandths,
    title,
)
from polymoe.report.routing import RoutingStatistics
from polymoe.report.tree import TaskTree, task_tree

NUMBERS = 200_000
"""Numbers that a page carries for its selectors: about 0.8 MB. Of more, as many routers as fit, evenly."""
NEAREST = 3
EXPLAINED = {
    "entropy": "0: a task (or token) uses one skill alone; 1: all alike",
    "effective skills": "how many skills, used alike, would be as undecided",
    "usage": "1: together the tasks use all skills; 0: all use one and the same",
    "load balance": "1: even; as many as there are skills: one takes all",
    "variation": "of the loads, standard deviation over mean: 0 when even",
    "discreteness": "0: every gate is 0 or 1; 1: every gate is one half, as at the start",
}


def facts(inspection: Inspection, anchor: str) -> str:
    """What it is, and parameters by kind of layer."""
    found = inspection.facts
    base = found["base"] or "unnamed"
    described = {"method": found["method"], "base": base, "parts": describe_parts(found)}
    described["trained parameters"] = f"{found['parameters']:,}"
    if found["tasks"]:
        described[f"{len(found['tasks'])} tasks"] = ", ".join(found["tasks"])
    if inspection.statistics is not None and inspection.statistics.tokens.any():
        described["routing read from"] = f"{inspection.statistics.tokens.sum():,} tokens"
    if inspection.statistics is None:
        described["routing"] = "goes by text, and none was given: --data, or --text"
    elif not inspection.routes:
        described["routing"] = "none, one pair for everybody"
    rows = [
        [kind, str(row["layers"]), f"{row['router']:,}", f"{row['experts']:,}"]
        for kind, row in found["layers"].items()
    ]
    caption = "Parameters by kind of layer"
    parameters = table(caption, ["layers", "number", "in routers", "in experts"], rows, "numbers")
    return describe_list(described) + fold(caption, parameters)


def complaints(inspection: Inspection, anchor: str) -> str:
    """Faults of the routers, by name, with what helps."""
    if not inspection.routes:
        return ""
    if not inspection.complaints:
        return (
            '<p class="fine">No fault found: no dead skills, no skill that takes all, no tasks that are all '
            "routed alike, as far as there are tasks and tokens enough to tell.</p>"
        )
    found = []
    for complaint in inspection.complaints:
        where = "".join(f"<li>{escape(place)}" for place in complaint.where)
        what = complaint.what[0].upper() + complaint.what[1:]
        routers = f"{len(complaint.where)} router" + "s" * (len(complaint.where) > 1)
        found.append(
            f'<div class="fault"><p><strong>{escape(what)}.</strong> {escape(complaint.remedy)}</p>'
            f"<details><summary>{routers}</summary><ul>{where}</ul></details></div>"
        )
    return "".join(found)


def weights(inspection: Inspection, anchor: str) -> str:
    """Tasks x skills: the mean at first; by router and head where the selectors say so."""
    statistics = inspection.statistics
    if statistics is None or not inspection.routes:
        return ""
    views: list[dict[str, Any]] = []
    order = _order(statistics)
    tables = statistics.by_size()
    kept = _sample(statistics.routers, NUMBERS - sum(w[:, 0].size for w in tables.values()))
    for size, w in tables.items():
        if size > 1:
            name = f"mean of {w.shape[1]} routers" + f" with {size} skills" * (len(tables) > 1)
            views.append(_view(name, w.mean(axis=1)[order]))
    views += [_view(router.name, router.weights[order]) for router in kept if router.n_skills > 1]
    heads = max(view["heads"] for view in views)
    routers = "".join(f"<option value={i}>{escape(view['name'])}" for i, view in enumerate(views))
    head = "".join(f"<option value={i}>head {i}" for i in range(heads))
    picks = f"<label>Router <select name=view>{routers}</select></label>"
    if heads > 1:
        picks += f"<label>Head <select name=head><option value=-1>mean of heads{head}</select></label>"
    picks += "<label><input type=checkbox name=zero> colours from 0</label>"
    note = (
        ""
        if len(kept) == len(statistics.routers)
        else (
            f"<p>The selector has {len(kept)} of {len(statistics.routers)} routers, evenly drawn; "
            "<code>--json</code> has all.</p>"
        )
    )
    data = {"tasks": [statistics.tasks[t] for t in order], "views": views}
    return (
        f'<div class="weights" id="{anchor}-weights"><form class="picks" hidden>{picks}</form>'
        f'<div class="shown" aria-live="polite">{mean_weights(statistics, 1)}</div>'
        f"{json_block(data)}</div>{note}{_caution(statistics)}"
    )


def mean_weights(statistics: RoutingStatistics, most: int | None = None) -> str:
    """The mean over routers and heads, a table for each number of skills, ``most`` at most."""
    order, found = _order(statistics), []
    for size, w in statistics.by_size().items():
        if size > 1:
            caption = f"Weights, mean of {w.shape[1]} routers" + " and their heads" * (w.shape[2] > 1)
            tasks = [statistics.tasks[t] for t in order]
            skills = [str(s) for s in range(size)]
            found.append(heat(caption, "task", tasks, skills, w.mean(axis=(1, 2))[order]))
    return "".join(found[:most])


def tasks(inspection: Inspection, anchor: str) -> str:
    """Dendrogram, nearest tasks, similarities."""
    statistics = inspection.statistics
    if statistics is None or not inspection.routes or len(statistics.tasks) < 2:
        return ""
    order = _order(statistics)
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


def routers(inspection: Inspection, anchor: str) -> str:
    """The measures of each router, and the load of its skills."""
    statistics = inspection.statistics
    if statistics is None or not inspection.routes:
        return ""
    mean = statistics.summary()
    names = list(mean)
    body = _measures("mean", mean, names, max(r.n_skills for r in statistics.routers))
    body += "".join(_measures(r.name, r.summary(), names, r.n_skills) for r in statistics.routers)
    head = "".join(f'<th scope="col">{escape(name.replace("_", " "))}' for name in ["router", *names])
    caption = "Measures of each router"
    bars = scroll(
        caption,
        f'<table class="bars"><caption>{caption}</caption><thead><tr>{head}</thead>'
        f"<tbody>{body}</tbody></table>",
    )
    said = {name: text for name, text in EXPLAINED.items() if name.replace(" ", "_") in mean}
    return bars + fold("What the measures say", describe_list(said)) + _loads(statistics.routers)


def gradients(inspection: Inspection, anchor: str) -> str:
    """The cosines of the tasks' gradients."""
    found = inspection.gradients
    if found is None:
        return ""
    order = list(range(len(found.tasks)))
    if inspection.statistics is not None and set(inspection.statistics.tasks) == set(found.tasks):
        order = [found.tasks.index(inspection.statistics.tasks[t]) for t in _order(inspection.statistics)]
    names = [found.tasks[t] for t in order]
    values = found.cosines[np.ix_(order, order)]
    matrix = heat("Cosine of two tasks' gradients", "task", names, names, values, triangle=True)
    return (
        f"<p>Of the experts' parameters, over up to {found.n_texts} training texts a task: above 0 (blue) "
        f"two tasks pull the same way, below 0 (orange) against each other.</p>{matrix}"
    )


def curves(inspections: Sequence[Inspection]) -> str:
    """Loss, validation and routing measures over steps, of all runs in the same charts."""

    def series(part: str, *names: str) -> dict[str, Curve]:
        found = {}
        for inspection in inspections:
            of = "" if len(inspections) == 1 else f" ({inspection.name})"
            if inspection.curves is None:
                continue
            curves = inspection.curves
            where = {"loss": curves.loss} if part == "loss" else getattr(curves, part)
            for name in names or where:
                if name in where:
                    found[name.replace("_", " ") + of] = where[name]
        return found

    charts = [
        chart("Training loss", series("loss")),
        chart("Validation", series("metrics")),
        chart("Routing", series("routing", "entropy", "usage", "discreteness"), (0, 1)),
        chart("Effective skills", series("routing", "effective_skills")),
        chart("Least load of a skill, mean of the routers", series("routing", "least_load")),
    ]
    return f'<div class="charts">{"".join(charts)}</div>' if any(charts) else ""


def _order(statistics: RoutingStatistics) -> np.ndarray:
    """Tasks as the dendrogram has them, like beside like; as they are without scipy."""
    try:
        return task_tree(statistics.similarity).order
    except (ImportError, ValueError):
        return np.arange(len(statistics.tasks))


def _sample(routers: Sequence[RouterStatistics], numbers: int) -> list[RouterStatistics]:
    """Routers with at most so many numbers in all, evenly drawn; one at least."""
    fits = max(1, numbers * len(routers) // max(sum(r.weights.size for r in routers), 1))
    if fits >= len(routers):
        return list(routers)
    return [routers[i] for i in np.linspace(0, len(routers) - 1, fits).round().astype(int)]


def _view(name: str, w: np.ndarray) -> dict[str, Any]:
    """Weights [T, Q, S] in thousandths."""
    return {"name": name, "heads": w.shape[1], "skills": w.shape[2], "w": thousandths(w)}


def _caution(statistics: RoutingStatistics) -> str:
    if len(statistics.routers) == 1:
        return ""
    return (
        "<p>Each router numbers its skills for itself: skill 0 of one has nothing in common with skill 0 of "
        "another, and their mean says little. Pick a router to see what it does.</p>"
    )


def _measures(name: str, summary: dict[str, float], names: Sequence[str], n_skills: int) -> str:
    ends = {
        "effective_skills": (0, n_skills),
        "load_balance": (1, n_skills),
        "variation": (0, (n_skills - 1) ** 0.5),
    }
    cells = (bar(summary[n], *ends.get(n, (0, 1))) if n in summary else "<td>" for n in names)
    return f'<tr><th scope="row">{title(name)}{"".join(cells)}'


def _loads(routers: Sequence[RouterStatistics]) -> str:
    """Routers x skills: the share of everything that falls to each."""
    found = []
    for size in dict.fromkeys(router.n_skills for router in routers if router.n_skills > 1):
        rows = [router for router in routers if router.n_skills == size]
        loads = np.array([router.load for router in rows])
        caption = f"Load of each skill (an even share is {1 / size:.2f})"
        names, skills = [router.name for router in rows], [str(s) for s in range(size)]
        span = (0.0, max(float(loads.max()), 2 / size))
        found.append(heat(caption, "router", names, skills, loads, span=span, marked=loads < DEAD / size))
    dead = any((router.load < DEAD / router.n_skills).any() for router in routers)
    note = f"<p>Framed: less than {DEAD:g} of an even share.</p>" if dead else ""
    return "".join(found) + note


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
