"""A run as a file: what was measured, on what; and two runs beside each other."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.options import Options
from benchmarks.table import Table, targets
from benchmarks.targets import Results
from benchmarks.timing import Row

FORMAT = 1
LEAST_CHANGE = 0.05  # of a ratio


class Run(NamedTuple):
    """Everything a run says."""

    machine: dict[str, Any]
    options: dict[str, Any]
    load: float
    roofs: dict[str, Any]
    results: Results


def write(path: Path, run: Run) -> None:
    """As JSON."""
    content = {
        "format": FORMAT,
        "machine": run.machine,
        "options": run.options,
        "load": run.load,
        "roofs": run.roofs,
        "targets": [list(row) for row in targets(run.results).rows],
        "resident": list(run.results.resident),
        "rows": [row.as_dict() for row in run.results.rows],
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> Run:
    """What :func:`write` wrote. ValueError for a file of another format."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.get("format") != FORMAT:
        raise ValueError(f"{path}: expected format {FORMAT}, got {content.get('format')!r}")
    rows = [Row(**row) for row in content["rows"]]
    results = Results(rows, content["resident"])
    return Run(content["machine"], content["options"], content["load"], content["roofs"], results)


def together(runs: Sequence[Run]) -> Run:
    """Groups that were timed one after another, as one run; machine, options and limits are the first's.
    ValueError for runs of different processors or versions."""
    first = runs[0]
    for run in runs[1:]:
        for key in ("cpu", "versions"):
            if run.machine.get(key) != first.machine.get(key):
                raise ValueError(f"read: expected runs of one machine, got {key} of two")
    rows = [row for run in runs for row in run.results.rows]
    resident = [each for run in runs for each in run.results.resident]
    return first._replace(load=max(run.load for run in runs), results=Results(rows, resident))


def options_of(options: Options) -> dict[str, Any]:
    """For the file."""
    return {**asdict(options), "isas": list(options.isas)}


class Change(NamedTuple):
    """A quantity that does not depend on the machine's speed, in both runs. ``gain`` > 1: better now."""

    row: Row
    quantity: str
    before: float
    now: float
    gain: float
    noise: float


def changes(before: Sequence[Row], now: Sequence[Row]) -> Iterator[Change]:
    """What changed by more than the noise of the rows, least gain first: a rival's time over ours, percent of
    the roof, and what an adapter costs."""
    old, own = ({(row.group, row.what, row.who): row for row in rows} for rows in (before, now))
    found = []
    for row in now:
        was = old.get((row.group, row.what, row.who))
        if was is None or row.group == "growth":
            continue
        noise = max(LEAST_CHANGE, row.noise, was.noise)
        if row.who != row.against == was.against:
            ours = [rows.get((row.group, row.what, row.against), row) for rows in (old, own)]
            noise = max(noise, *(r.noise for r in ours))
            if not row.who.startswith("polymoe"):
                found.append(
                    _change(row, f"time over that of {row.against}", was.ratio[-1], row.ratio[-1], noise)
                )
        if row.who.startswith("polymoe") and row.limit[0] > 0 and was.limit[0] > 0:
            found.append(_change(row, "% of roof", was.percent[1], row.percent[1], noise))
        if row.who.startswith("polymoe") and row.overhead is not None and was.overhead is not None:
            cost = 100 * was.overhead, 100 * row.overhead
            gain = (1 + was.overhead) / (1 + row.overhead)
            found.append(Change(row, "% over frozen", *cost, gain, noise))
    changed = [c for c in found if abs(c.gain - 1) > c.noise]
    yield from sorted(changed, key=lambda c: c.gain)


def _change(row: Row, quantity: str, before: float, now: float, noise: float) -> Change:
    return Change(row, quantity, before, now, now / before, noise)


def comparison(before: Run, now: Run) -> Table:
    """The table of changes; its title says where the two runs had other conditions."""
    rows = [
        (
            f"{c.row.group}: {c.row.what}",
            f"{c.row.who}: {c.quantity}",
            f"{c.before:.3g}",
            f"{c.now:.3g}",
            f"{100 * (c.gain - 1):+.1f} %",
            f"{100 * c.noise:.1f} %",
            "better" if c.gain > 1 else "worse",
        )
        for c in changes(before.results.rows, now.results.rows)
    ]
    title = f"changes beyond noise since {before.machine['commit']}: {len(rows)}"
    pairs = [(before.machine["cpu"], now.machine["cpu"], "cpu")]
    pairs += [(before.options[k], now.options[k], k) for k in ("threads", "isas", "quick")]
    title += "".join(f"; {name} was {a}, is {b}" for a, b, name in pairs if a != b)
    return Table(title, ("what", "quantity", "before", "now", "gain", "noise", ""), rows)
