"""Tables of a run, in the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from benchmarks.growth import slopes
from benchmarks.targets import TARGETS, Results
from benchmarks.timing import Row

MARKS = {"drift": "~", "busy": "*"}
LEGEND = (
    "Where two values stand in a cell, the first is cold (nothing in a cache), the second warm (called "
    "before). Times are the least; median: of the warm ones. Of roof: of what multiply-adds and memory allow "
    "in the same run. Ratio: the time over that of polymoe in the same contest. Over: over the same layer "
    "without its adapter. ~ the limits before and after differ by more than 5 %; * others took more than 5 % "
    "of the machine."
)


class Table(NamedTuple):
    """A title, names of columns, rows of text."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def print(self, console: Console) -> None:
        """In the terminal."""
        table = RichTable(title=self.title, title_justify="left", header_style="bold")
        for i, name in enumerate(self.columns):
            table.add_column(name, justify="left" if i < 2 else "right", overflow="fold")
        for row in self.rows:
            table.add_row(*map(escape, row))
        console.print(table)

    def markdown(self) -> str:
        """As a section of a page."""
        rule = ["---" if i < 2 else "--:" for i in range(len(self.columns))]
        lines = [self.columns, rule, *([cell.replace("|", "/") for cell in row] for row in self.rows)]
        return f"### {self.title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def tables(results: Results) -> Iterator[Table]:
    """Those that the run has rows for, the targets first."""
    yield targets(results)
    for group in dict.fromkeys(row.group for row in results.rows):
        if group != "growth":
            yield timings(group, [row for row in results.rows if row.group == group])
    if results.resident:
        yield memory(results.resident)
    if grown := slopes(results.rows):
        columns = ("series", "values", "ms", "slope", "slope, upper half", "twice as many")
        yield Table(
            "growth",
            columns,
            [
                (
                    g.name,
                    ", ".join(f"{v:g}" for v in g.values),
                    ", ".join(f"{1e3 * s:.3g}" for s in g.seconds),
                    f"{g.slope:.3f}",
                    f"{g.upper:.3f}",
                    f"{100 * g.doubling:+.1f} %",
                )
                for g in grown
            ],
        )


def targets(results: Results) -> Table:
    """Each target that was measured, its worst value, and whether it is reached."""
    rows = []
    for target in TARGETS:
        worst = target.worst(results)
        if worst is not None:
            sign = "<=" if target.most else ">="
            verdict = "hit" if target.reached(worst[0]) else "miss"
            rows.append(
                (
                    target.what,
                    worst[1],
                    f"{sign} {target.limit:.3g} {target.unit}",
                    f"{worst[0]:.3g}",
                    verdict,
                )
            )
    return Table("targets, each by its worst row", ("what", "where", "target", "measured", ""), rows)


def timings(group: str, rows: Sequence[Row]) -> Table:
    """One group."""
    columns = ("what", "who", "ms", "median", "rate", "of roof", "ratio", "over", "")
    firsts = [i == 0 or rows[i - 1].what != row.what for i, row in enumerate(rows)]
    return Table(group, columns, [timing(row, first) for row, first in zip(rows, firsts, strict=True)])


def timing(row: Row, first: bool) -> list[str]:
    """One row; what it is about stands in the first of its contest."""
    states = slice(2 if row.warm else 1)
    return [
        row.what if first else "",
        row.who,
        " / ".join(milliseconds(times[0]) for times in (row.cold, row.warm) if times),
        milliseconds((row.warm or row.cold)[1]),
        rate(row),
        " / ".join(f"{p:.0f}" for p in row.percent[states]) + " %" if row.limit[0] > 0 else "",
        " / ".join(f"{r:.2f}" for r in row.ratio[states]),
        "" if row.overhead is None else f"{100 * row.overhead:+.1f} %",
        "".join(MARKS[mark] for mark in row.marks),
    ]


def milliseconds(seconds: float) -> str:
    """Three digits at least."""
    ms = 1e3 * seconds
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.3g}"


def rate(row: Row) -> str:
    """Tokens, flops or bytes a second, whichever says most."""
    if row.tokens:
        return f"{row.tokens / row.seconds:,.0f} tokens/s"
    if row.bound == "memory":
        return f"{row.bytes / row.seconds * 1e-9:.1f} GB/s"
    return f"{row.flops / row.seconds * 1e-9:.0f} GF/s" if row.flops else ""


def memory(resident: Sequence[dict[str, Any]]) -> Table:
    """Peak resident memory of fresh processes."""
    theirs = {entry["what"]: entry["peak"] for entry in resident if entry["who"] == "peft"}
    rows = [
        (
            entry["what"],
            entry["who"],
            *(f"{entry[key] / 2**20:,.0f}" for key in ("libraries", "model", "peak")),
            f"{entry['peak'] / theirs[entry['what']]:.2f}" if entry["what"] in theirs else "",
        )
        for entry in resident
    ]
    return Table(
        "resident memory, MiB", ("what", "who", "libraries", "with the model", "peak", "over PEFT's"), rows
    )


def heading(machine: dict[str, Any], options: dict[str, Any], load: float) -> list[str]:
    """What the tables were measured on."""
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
    pools = ", ".join(
        f"{p['internal_api']} {p['version'] or ''} {p['architecture'] or ''}".strip()
        for p in machine["pools"]
    )
    caches = ", ".join(f"{k} {v}" for k, v in machine["caches"].items())
    return [
        f"{machine['cpu']}, {machine['cpus']} CPUs, {caches}",
        f"{machine['system']}, Python {machine['python']}, {versions}, commit {machine['commit']}",
        f"threads {options['threads']}, {options['isas'][0]}, {machine['openmp']}; pools: {pools}",
        f"load average before the start {load:.2f}, {options['rounds']} rounds",
    ]
