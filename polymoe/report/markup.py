"""Pieces of HTML: escaped text, tables, tables whose cells are coloured, line charts.

Charts are drawn in a box of 100 x 100 that stretches, with their texts beside it as HTML: they fit any width
and stay readable. Everything that a colour says is there as a number too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from polymoe.report.curves import Curve

POINTS, ROWS = 200, 24
"""Points of a curve as it is drawn, and rows of its table."""
DARK, DARKER = 0.55, 0.70
"""From where on a cell's text is written in the other colour, on a dark and on a light page: so its contrast
is 4.5 at least everywhere."""


LITTLE = 0.2
"""Numbers that differ by less than this part of the largest have colours that go from 0."""


def two(value: float, digits: int = 2) -> str:
    """So many digits, and no sign before a zero."""
    return f"{round(float(value), digits) + 0.0:.{digits}f}"


def digits_of(high: float) -> int:
    """Digits of numbers up to ``high``: three of small ones."""
    return 2 if high >= 0.1 else 3


def number(value: float) -> str:
    """Three significant digits, or a whole number as it is."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.3g}"


def title(name: str) -> str:
    """A name, escaped, that may be broken after its dots."""
    return escape(name).replace(".", ".<wbr>")


def describe_list(facts: Mapping[str, Any]) -> str:
    """Names and what they are."""
    rows = "".join(f"<dt>{escape(name)}<dd>{escape(str(value))}" for name, value in facts.items())
    return f"<dl>{rows}</dl>"


def fold(summary: str, content: str) -> str:
    """Something to unfold."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def scroll(label: str, table: str) -> str:
    """A table that scrolls by itself where it is wider than the page, by keyboard too."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">{table}</div>'


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]], classes: str = "") -> str:
    """A table of texts; the first column names the rows."""
    head = "".join(f'<th scope="col">{escape(column)}' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{title(first)}' + "".join(f"<td>{escape(cell)}" for cell in rest)
        for first, *rest in rows
    )
    inner = f"<caption>{escape(caption)}</caption><thead><tr>{head}</thead><tbody>{body}</tbody>"
    return scroll(caption, f'<table class="{classes}">{inner}</table>')


def span_of(values: np.ndarray) -> tuple[float, float]:
    """From where to where the colours of a table go: what its sizes span, or from 0 where that is little."""
    size = np.abs(values)
    low, high = (float(size.min()), float(size.max())) if size.size else (0.0, 1.0)
    low = low if high - low >= LITTLE * high else 0.0
    return low, high or 1.0


def cell(value: float, low: float, high: float, more: str = "") -> str:
    """A coloured cell with its number: how far its size lies between ``low`` and ``high``."""
    v = min(max((abs(value) - low) / max(high - low, 1e-9), 0.0), 1.0)
    classes = "n " * (value < 0) + "a " * (v >= DARK) + "b " * (v >= DARKER) + more
    attribute = f' class="{classes.strip()}"' if classes.strip() else ""
    return f'<td{attribute} style="--v:{v:.2g}">{two(value, digits_of(high))}'


def legend(low: float, high: float) -> str:
    """What the colours of a heat table mean."""
    ends = (f"<span>{two(end, digits_of(high))}</span>" for end in (low, high))
    return '<p class="legend">' + '<span class="ramp" aria-hidden="true"></span>'.join(ends) + "</p>"


def heat(
    caption: str,
    corner: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: np.ndarray,
    *,
    span: tuple[float, float] | None = None,
    triangle: bool = False,
    marked: np.ndarray | None = None,
) -> str:
    """A table of numbers [rows, columns], coloured, with a legend.

    ``triangle``: of a symmetric table, only what lies below the diagonal. ``marked`` [rows, columns] bool:
    cells that are set off.
    """
    if triangle:
        rows, columns, values = rows[1:], columns[:-1], values[1:, :-1]
    below = values[np.tril_indices(len(values))] if triangle else values
    low, high = span_of(below) if span is None else span
    head = "".join(f'<th scope="col">{escape(column)}' for column in (corner, *columns))
    body = []
    for r, (row_name, row) in enumerate(zip(rows, values, strict=True)):
        cells = (
            cell(float(x), low, high, more="dead" * bool(marked is not None and marked[r, c]))
            for c, x in enumerate(row[: r + 1] if triangle else row)
        )
        body.append(f'<tr><th scope="row">{title(row_name)}{"".join(cells)}')
    inner = f"<caption>{escape(caption)}</caption><thead><tr>{head}</thead><tbody>{''.join(body)}</tbody>"
    return scroll(caption, f'<table class="heat">{inner}</table>') + legend(low, high)


def thousandths(values: np.ndarray) -> list[int]:
    """Numbers as the script takes them."""
    return [int(x) for x in (values * 1000).round().ravel()]


def json_block(value: Any) -> str:
    """Data for the script; no text in it can end the element."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return f'<script type="application/json">{text}</script>'


def bar(value: float, low: float, high: float) -> str:
    """A cell with its number and a bar below it."""
    v = min(max((value - low) / max(high - low, 1e-9), 0.0), 1.0)
    return f'<td class="bar" style="--v:{v:.3g}">{two(value)}'


def chart(heading: str, series: Mapping[str, Curve], span: tuple[float, float] | None = None) -> str:
    """Lines over steps, as a figure with its numbers in a table to unfold; nothing where there are none."""
    series = {name: curve for name, curve in series.items() if len(curve)}
    if not series:
        return ""
    values = np.concatenate([curve.values for curve in series.values()])
    low, high = _nice(float(values.min()), float(values.max())) if span is None else span
    last = max(int(curve.steps[-1]) for curve in series.values())
    lines, keys, said = [], [], []
    for i, (name, curve) in enumerate(series.items()):
        drawn = curve.thin(POINTS)
        x, y = drawn.steps / max(last, 1) * 100, 100 - (drawn.values - low) / (high - low) * 100
        points = " ".join(f"{a:.4g},{b:.4g}" for a, b in zip(x, y, strict=True))
        if len(drawn) == 1:
            points += f" {points}"  # a dot
        lines.append(f'<polyline class="l{i % 6}" points="{points}"/>')
        mark = f'<svg viewBox="0 0 20 4" aria-hidden="true"><path class="l{i % 6}" d="M0 2H20"/></svg>'
        keys.append(f"<li>{mark}{escape(name)}")
        first, end = number(curve.values[0]), number(curve.values[-1])
        said.append(f"{name} from {first} at step {curve.steps[0]} to {end} at step {curve.steps[-1]}")
    grid = "".join(f'<path class="grid" d="M0 {y}H100"/>' for y in (0, 25, 50, 75, 100))
    label = escape(f"{heading}: {'; '.join(said)}", quote=True)
    marks = "".join(f"<span>{number(y)}</span>" for y in (high, (low + high) / 2, low))
    return (
        f'<figure class="chart"><figcaption>{escape(heading)}</figcaption><div class="plot">'
        f'<div class="ys" aria-hidden="true">{marks}</div>'
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="{label}">'
        f"{grid}{''.join(lines)}</svg>"
        f'<div class="xs" aria-hidden="true"><span>0</span><span>step</span><span>{last:,}</span></div></div>'
        f'<ul class="keys">{"".join(keys)}</ul>{fold("as a table", _values(heading, series))}</figure>'
    )


def _values(heading: str, series: Mapping[str, Curve]) -> str:
    thin = {name: curve.thin(ROWS) for name, curve in series.items()}
    points = {name: dict(zip(c.steps.tolist(), c.values.tolist(), strict=True)) for name, c in thin.items()}
    steps = sorted({step for values in points.values() for step in values})
    rows = [
        [f"{step:,}", *(f"{p[step]:.4g}" if step in p else "" for p in points.values())] for step in steps
    ]
    return table(heading, ["step", *points], rows)


def _nice(low: float, high: float) -> tuple[float, float]:
    """Round numbers around a range."""
    unit = 10 ** math.floor(math.log10(max(high - low, abs(high) / 10, 1e-6))) / 2
    below, above = math.floor(low / unit + 1e-9), math.ceil(high / unit - 1e-9)
    return below * unit, max(above, below + 1) * unit
