"""Pictures of a run: kernels under the limits of the machine, and how time grows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from benchmarks.growth import Growth, slopes
from benchmarks.results import Run
from benchmarks.timing import Row

COLOURS = {
    "products": "#1f6fb2",
    "layers": "#c2410c",
    "alone": "#2e7d32",
    "experts": "#7b1fa2",
    "operations": "#8a8a8a",
}
NAMES = {
    "products": "frozen product",
    "layers": "layer with adapter, both passes",
    "alone": "adapter alone, both passes",
    "experts": "experts by token, both passes",
    "operations": "other operations, forward",
}
POINT, LIMIT = COLOURS["products"], "#444444"
FONT = 7


def plot(path: Path, run: Run) -> None:
    """The roofline, and the panels of growth below it where that was measured; the format is that of the
    name."""
    grown = slopes(run.results.rows)
    figure = Figure(figsize=(11, 6.6 + (2.6 if grown else 0)), layout="constrained")
    parts = figure.subfigures(2, 1, height_ratios=[6.6, 2.6]) if grown else [figure]
    _roofline(parts[0].subplots(), run)
    if grown:
        axes = parts[1].subplots(1, len(grown), squeeze=False)[0]
        for panel, g in zip(axes, grown, strict=True):
            _grows(panel, g)
        axes[0].set_ylabel("ms, both passes of a layer", fontsize=8)
    figure.savefig(path, dpi=150)


def _roofline(panel: Any, run: Run) -> None:
    rows = [row for row in run.results.rows if row.label and row.flops and row.bytes and row.group in COLOURS]
    peaks = {dtype: 1e-9 * peak for dtype, peak in run.roofs["peaks"].items()}
    peak = peaks["float32"]
    points = [_point(row) for row in rows] or [(1.0, peak)]
    low, high = min(x for x, _ in points) / 5, max(max(x for x, _ in points) * 2.5, 30.0)
    if not run.options["isas"][0].endswith("bf16"):  # there both are the same
        del peaks["bfloat16"]
    panel.set(xscale="log", yscale="log", xlim=(low, high))
    panel.set_ylim(min(y for _, y in points) / 2, 2 * max(peaks.values()))
    x = np.geomspace(low, high, 400)
    for name, bandwidth in run.roofs["levels"].items():
        slope = bandwidth * 1e-9
        panel.plot(x, np.minimum(peak, slope * x), color=LIMIT, linewidth=1.0)
        x0, y0 = low * 1.1, slope * low * 1.15
        angle = np.degrees(np.arctan2(y0, x0))  # in data coordinates, which the text is told to follow
        panel.text(
            x0, y0, f"{name}: {slope:.0f} GB/s", fontsize=8, rotation=angle, rotation_mode="anchor",
            transform_rotates_text=True,
        )  # fmt: skip
    fastest = 1e-9 * max(run.roofs["levels"].values())
    for dtype, most in peaks.items():
        panel.plot(x, np.minimum(most, fastest * x), color=LIMIT, linewidth=1.0)
        panel.annotate(
            f"{dtype} multiply-adds: {most:.0f} GF/s", (high, most), xytext=(-3, 4),
            textcoords="offset points", ha="right", fontsize=8,
        )  # fmt: skip
    for group, colour in COLOURS.items():
        some = [_point(row) for row in rows if row.group == group]
        if some:
            panel.plot(*zip(*some, strict=True), "o", color=colour, markersize=4.5, label=NAMES[group])
    _labels(panel, rows)
    n = run.options["threads"]
    title = f"{run.machine['cpu']}, {n} thread{'s' * (n > 1)}, {run.options['isas'][0]}"
    panel.set_title(title, loc="left", fontsize=10)
    panel.set_xlabel("flops for each byte that must be moved")
    panel.set_ylabel("GF/s, warm")
    panel.grid(which="major", linewidth=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(loc="lower right", fontsize=8, frameon=False)


def _point(row: Row) -> tuple[float, float]:
    return row.flops / row.bytes, row.flops / row.seconds * 1e-9


def _labels(panel: Any, rows: Sequence[Row]) -> None:
    """Names beside the points where there is room, else further below with a line; of points of one name, the
    fastest has it."""
    figure = panel.get_figure(root=True)
    figure.draw_without_rendering()
    scale = figure.dpi / 72
    where = [panel.transData.transform(_point(row)) / scale for row in rows]  # in points
    taken = [(x - 3, y - 3, x + 3, y + 3) for x, y in where]
    named: set[tuple[str, str | None]] = set()
    fastest = sorted(zip(rows, where, strict=True), key=lambda pair: -_point(pair[0])[1])
    for row, (x, y) in sorted(fastest, key=lambda pair: list(COLOURS).index(pair[0].group)):
        if (row.group, row.label) in named:
            continue
        named.add((row.group, row.label))
        wide, high = 0.56 * FONT * len(row.label or ""), 1.1 * FONT
        near = [(4, -high / 2), (-4 - wide, -high / 2), (2, 3), (2, -3 - high)]
        far = [(dx, -high * i) for i in range(2, 14) for dx in (8, -8 - wide)]
        for i, (dx, dy) in enumerate(near + far):
            box = (x + dx, y + dy, x + dx + wide, y + dy + high)
            if not any(box[0] < t[2] and t[0] < box[2] and box[1] < t[3] and t[1] < box[3] for t in taken):
                taken.append(box)
                line = {"arrowstyle": "-", "color": COLOURS[row.group], "linewidth": 0.4, "shrinkA": 0}
                panel.annotate(
                    row.label, _point(row), xytext=(dx + (wide if dx < 0 else 0), dy + 0.2 * high),
                    textcoords="offset points", ha="right" if dx < 0 else "left", fontsize=FONT,
                    color=COLOURS[row.group], arrowprops=line if i >= len(near) else None,
                )  # fmt: skip
                break


def _grows(panel: Any, g: Growth) -> None:
    """Least seconds over values."""
    panel.plot(g.values, [1e3 * s for s in g.seconds], "o-", color=POINT, markersize=3.5, linewidth=1)
    panel.set_xscale("log", base=10 if g.name == "tasks" else 2)
    panel.set_yscale("log")
    low, high = min(g.seconds) * 1e3, max(g.seconds) * 1e3
    panel.set_ylim(low / 2, max(high, 8 * low) * 2)
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_minor_formatter(NullFormatter())
    panel.set_title(f"{g.name}: slope {g.slope:.2f}", loc="left", fontsize=9)
    panel.set_xlabel(g.name, fontsize=8)
    panel.tick_params(labelsize=7)
    panel.grid(which="major", linewidth=0.3)
    panel.spines[["top", "right"]].set_visible(False)
