"""What notebooks show of models, adapters and finished runs; each piece brings its own style."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from polymoe.adapters import AdaptedModel, Adapter
from polymoe.nn import Module
from polymoe.report.html import fragment, styled
from polymoe.report.inspection import inspect
from polymoe.report.markup import describe_list, table


def model_fragment(model: AdaptedModel) -> str:
    """The active adapter: facts, the mean heatmap, nearest tasks. Of faults nothing, for nobody says whether
    it was trained; its text where none is active."""
    try:
        found = inspect(model)
    except RuntimeError:  # none is active
        return f"<pre>{escape(repr(model))}</pre>"
    return fragment(found, faults=False)


def adapter_fragment(adapter: Adapter) -> str:
    """The same of an adapter without its base."""
    model = AdaptedModel(Module())
    model.adapters["default"] = adapter
    model.set_adapter("default")
    return model_fragment(model)


def summary_fragment(summary: Mapping[str, Any]) -> str:
    """A finished run: how long it took, and the metrics of each task, before and after where both are
    known."""
    facts = {
        "objective": summary["objective"],
        "steps": f"{summary['steps']:,} in {summary['epochs']:g} epochs, the best {summary['best_step']:,}",
        "trained": f"{summary['trainable_parameters']:,} parameters",
        "time": f"{summary['train_seconds']:.1f} s, {summary['tokens_per_second']:,.0f} tokens/s",
    }
    parts = ["<h3>Training run</h3>", describe_list(facts)]
    if (after := summary["evaluation"]) is not None:
        before = summary["evaluation_before"] or {"tasks": {}, "mean": {}}
        metrics = list(after["mean"])
        rows = [
            [name, *(_change(before["tasks"].get(name, {}), own, m) for m in metrics), str(own.get("n", ""))]
            for name, own in after["tasks"].items()
        ]
        rows.append(["mean", *(_change(before["mean"], after["mean"], m) for m in metrics), ""])
        columns = ["task", *(metric.replace("_", " ") for metric in metrics), "n"]
        parts.append(table(f"Evaluation on {summary['evaluated_split']}", columns, rows, "numbers"))
    return styled("".join(parts))


def _change(before: Mapping[str, float], after: Mapping[str, float], metric: str) -> str:
    if metric not in after:
        return ""
    return f"{before[metric]:.3f} → {after[metric]:.3f}" if metric in before else f"{after[metric]:.3f}"
