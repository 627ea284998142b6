"""The sections of a page about routers: which task uses which skill, and the measures of each router."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from polymoe.adapters.faults import DEAD
from polymoe.adapters.statistics import RouterStatistics
from polymoe.report.inspection import Inspection
from polymoe.report.markup import (
    bar,
    describe_list,
    fold,
    heat,
    json_block,
    scroll,
    thousandths,
    title,
)
from polymoe.report.routing import RoutingStatistics
from polymoe.report.task_section import task_order

NUMBERS = 200_000
"""Numbers that a page carries for its selectors: about 0.8 MB. Of more, as many routers as fit, evenly."""
EXPLAINED = {
    "entropy": "0: a task (or token) uses one skill alone; 1: all alike",
    "effective skills": "how many skills, used alike, would be as undecided",
    "usage": "1: together the tasks use all skills; 0: all use one and the same",
    "load balance": "1: even; as many as there are skills: one takes all",
    "variation": "of the loads, standard deviation over mean: 0 when even",
    "discreteness": "0: every gate is 0 or 1; 1: every gate is one half, as at the start",
}


def weights(inspection: Inspection, anchor: str) -> str:
    """Tasks x skills: the mean at first; by router and head where the selectors say so."""
    statistics = inspection.statistics
    if statistics is None or not inspection.routes:
        return ""
    views: list[dict[str, Any]] = []
    order = task_order(statistics)
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
    order, found = task_order(statistics), []
    for size, w in statistics.by_size().items():
        if size > 1:
            caption = f"Weights, mean of {w.shape[1]} routers" + " and their heads" * (w.shape[2] > 1)
            tasks = [statistics.tasks[t] for t in order]
            skills = [str(s) for s in range(size)]
            found.append(heat(caption, "task", tasks, skills, w.mean(axis=(1, 2))[order]))
    return "".join(found[:most])


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
