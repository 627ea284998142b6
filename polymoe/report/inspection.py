"""Everything that there is to see of one adapter, gathered once for the terminal, the page and notebooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from polymoe.adapters import AdaptedModel
from polymoe.adapters.faults import fault_text, find_faults, learns_routing, of_each_type, remedy
from polymoe.adapters.statistics import reads_texts
from polymoe.data import EncodedSplit
from polymoe.report.curves import Curves, read_curves
from polymoe.report.facts import adapter_facts
from polymoe.report.gradients import GradientSimilarity
from polymoe.report.routing import RoutingStatistics, routing_statistics
from polymoe.report.texts import TextRouting, text_routing

if TYPE_CHECKING:
    from polymoe.training import Run


@dataclass(frozen=True)
class Complaint:
    """A kind of fault: what it is, the routers (and skills) that have it, what helps."""

    what: str
    where: tuple[str, ...]
    remedy: str


@dataclass(frozen=True, eq=False)
class Inspection:
    """What was found of an adapter called ``name``: its ``facts``, and whatever else there is.

    ``statistics`` is None where the router reads texts and none were given; ``curves`` of a run alone.
    """

    name: str
    facts: dict[str, Any]
    statistics: RoutingStatistics | None = None
    complaints: tuple[Complaint, ...] = ()
    text: TextRouting | None = None
    curves: Curves | None = None
    gradients: GradientSimilarity | None = None

    @property
    def routes(self) -> bool:
        """Whether any router has a choice."""
        return self.statistics is not None and any(r.n_skills > 1 for r in self.statistics.routers)

    def _repr_html_(self) -> str:
        from polymoe.report.html import fragment

        return fragment(self)


def inspect(
    subject: AdaptedModel | Run,
    data: EncodedSplit | Mapping[str, Sequence[str]] | None = None,
    *,
    text: str | None = None,
    task: str | None = None,
    name: str | None = None,
    gradients: GradientSimilarity | None = None,
) -> Inspection:
    """What there is to see of a run or of a model's active adapter.

    ``data``: the texts by task of :func:`~polymoe.report.routing_statistics`, for a router that reads them;
    without, its statistics are left out. ``text`` and ``task``: a text whose routing is wanted.
    ``gradients``: what :func:`~polymoe.report.gradient_similarity` found.

    Raises as those functions do.
    """
    run = None if isinstance(subject, AdaptedModel) else subject
    model: AdaptedModel = subject if isinstance(subject, AdaptedModel) else subject.model
    adapter = model.adapter
    statistics = None
    if data is not None or not reads_texts(adapter):
        statistics = routing_statistics(model, data if reads_texts(adapter) else None)
    facts = adapter_facts(model)
    return Inspection(
        name or (facts["method"] if run is None else str(run.path)),
        facts,
        statistics,
        () if statistics is None else _complaints(model, statistics, run),
        None if text is None else text_routing(model, text, task),
        None if run is None else read_curves(run.path / "metrics.jsonl"),
        gradients,
    )


def _complaints(model: AdaptedModel, statistics: RoutingStatistics, run: Run | None) -> tuple[Complaint, ...]:
    """What is wrong with routers that were learnt."""
    adapter = model.adapter
    if not learns_routing(adapter):
        return ()
    rows = of_each_type(adapter, np.arange(len(statistics.tasks)))  # routers by type know their own tasks
    faults = sorted(find_faults([router.take(rows) for router in statistics.routers]))
    training = {} if run is None else run.recipe.get("training", {})
    rates = {name: float(value) for name, value in training.items() if "learning_rate" in name and value}
    found = []
    for kind in dict.fromkeys(fault.kind for fault in faults):
        skills: dict[str, list[str]] = {}
        for fault in faults:
            if fault.kind == kind:
                skills.setdefault(fault.router, []).append(str(fault.skill))
        where = [n if kind == "alike" else f"{n}: skill {', '.join(which)}" for n, which in skills.items()]
        what = fault_text(kind, len(skills), len(statistics.routers))
        found.append(Complaint(what, tuple(where), remedy(adapter, kind, rates)))
    return tuple(found)
