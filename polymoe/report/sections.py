"""The sections of a page about the adapter as a whole. Each takes an inspection and gives HTML, empty where
there is nothing to show; those about tasks and routers have files of their own."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from polymoe.report.curves import Curve
from polymoe.report.facts import describe_parts
from polymoe.report.inspection import Inspection
from polymoe.report.markup import (
    chart,
    describe_list,
    fold,
    table,
)


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
