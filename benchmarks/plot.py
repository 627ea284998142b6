"""One picture of the table of methods: accuracy against trained parameters, and at the same number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from benchmarks.report import Row

POINT, LORA, FROZEN = "#1f6fb2", "#c2410c", "#777777"


def plot(path: Path, tables: Mapping[str, Sequence[Row]], frozen: float) -> None:
    """Write an SVG with a panel for each of the two tables; ``frozen``: accuracy of the linear head."""
    left, right = ([row for row in rows if row.scores] for rows in tables.values())
    with rc_context({"svg.hashsalt": "polymoe", "font.size": 9, "svg.fonttype": "none"}):
        figure = Figure(figsize=(12, 0.26 * max(len(left), len(right), 12) + 1.6), layout="constrained")
        axes = figure.subplots(1, 2, width_ratios=[1.35, 1])
        for panel, title in zip(axes, tables, strict=True):
            panel.set_title(title, loc="left", fontsize=10)
            panel.spines[["top", "right"]].set_visible(False)
        _scatter(axes[0], left, frozen)
        _rows(axes[1], right, frozen)
        figure.savefig(path, metadata={"Date": None})


def _scatter(panel: Any, rows: Sequence[Row], frozen: float) -> None:
    """Accuracy over parameters; names stand in a column at the right, none over another."""
    panel.set_xscale("log")
    panel.set_xlabel("trained parameters of the adapter")
    panel.set_ylabel("mean test accuracy, percent")
    panel.axhline(100 * frozen, color=FROZEN, linestyle=":", linewidth=1)
    panel.annotate(
        "linear head on frozen features", (0.01, 100 * frozen), xycoords=("axes fraction", "data"),
        xytext=(0, 3), textcoords="offset points", color=FROZEN, fontsize=8,
    )  # fmt: skip
    ordered = sorted(rows, key=lambda row: float(np.mean(row.means)))
    for row in ordered:
        x, y, spread = row.size.parameters if row.size else 1, *_summary(row)
        panel.errorbar(x, y, spread, fmt="o", color=_colour(row), markersize=5, linewidth=1, capsize=2)
    low, high = panel.get_ylim()
    places = np.linspace(0.03, 0.97, len(ordered)) if len(ordered) > 1 else [0.5] * len(ordered)
    for row, place in zip(ordered, places, strict=True):
        x, y, _ = row.size.parameters if row.size else 1, *_summary(row)
        panel.annotate(
            row.method, (x, y), xytext=(1.04, place), textcoords="axes fraction", va="center",
            color=_colour(row), annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": _colour(row), "linewidth": 0.4, "alpha": 0.6},
        )  # fmt: skip
    panel.set_ylim(low, high)


def _rows(panel: Any, rows: Sequence[Row], frozen: float) -> None:
    """At the same budget all points would stand over each other, so every method has a line of its own."""
    ordered = sorted(rows, key=lambda row: float(np.mean(row.means)))
    panel.axvline(100 * frozen, color=FROZEN, linestyle=":", linewidth=1)
    for i, row in enumerate(ordered):
        y, spread = _summary(row)
        panel.errorbar(y, i, xerr=spread, fmt="o", color=_colour(row), markersize=5, linewidth=1, capsize=2)
        if row.method == "lora":
            panel.axvline(y, color=LORA, linestyle="--", linewidth=0.8)
    panel.set_yticks(
        range(len(ordered)),
        [f"{row.method}, {(row.size.parameters if row.size else 0) / 1e6:.2f} M" for row in ordered],
    )
    panel.set_xlabel("percent (dashed: LoRA, dotted: linear head)")
    panel.grid(axis="y", linewidth=0.3)


def _summary(row: Row) -> tuple[float, float]:
    """Mean and standard deviation in percent."""
    spread = float(np.std(row.means, ddof=1)) if len(row.means) > 1 else 0.0
    return 100 * float(np.mean(row.means)), 100 * spread


def _colour(row: Row) -> str:
    return LORA if row.method == "lora" else POINT
