"""The curves of a run, out of its ``metrics.jsonl``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Curve:
    """``steps`` [n] int64, rising, and ``values`` [n] float64."""

    steps: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.steps)

    def thin(self, n: int) -> Curve:
        """At most n points: means of stretches of as many points each, at their last steps."""
        if len(self) <= n:
            return self
        ends = np.linspace(0, len(self), n + 1).round().astype(np.int64)
        sums = np.add.reduceat(self.values, ends[:-1])
        return Curve(self.steps[ends[1:] - 1], sums / np.diff(ends))


@dataclass(frozen=True)
class Curves:
    """Of a run: ``loss`` by step, the mean ``metrics`` of each evaluation of validation by name, and the mean
    measures of the ``routing`` at them. Whatever was not written is empty."""

    loss: Curve
    metrics: Mapping[str, Curve]
    routing: Mapping[str, Curve]

    def __bool__(self) -> bool:
        return bool(len(self.loss) or self.metrics or self.routing)


def read_curves(path: str | os.PathLike[str]) -> Curves:
    """The curves in a ``metrics.jsonl``; none where there is no such file.

    A line cut short (the machine went down) is passed over. A run without validation has the measures of the
    routing at the evaluations that it has.
    """
    loss: dict[int, float] = {}
    metrics: dict[str, dict[int, float]] = {}
    routing: dict[str, dict[str, dict[int, float]]] = {}
    lines = Path(path).read_text(encoding="utf-8").splitlines() if Path(path).is_file() else []
    for line in lines:
        try:
            record: dict[str, Any] = json.loads(line)
            step = int(record["step"])
            if "loss" in record:
                loss[step] = float(record["loss"])
            elif "evaluation" in record and record["split"] == "valid":
                for name, value in record["evaluation"]["mean"].items():
                    metrics.setdefault(name, {})[step] = float(value)
            elif "routing" in record:
                found = routing.setdefault(record["split"], {})
                for name, value in record["routing"]["mean"].items():
                    found.setdefault(name, {})[step] = float(value)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    measures = routing.get("valid") or next(iter(routing.values()), {})
    return Curves(
        _curve(loss),
        {name: _curve(points) for name, points in metrics.items()},
        {name: _curve(points) for name, points in measures.items()},
    )


def _curve(points: Mapping[int, float]) -> Curve:
    steps = sorted(step for step in points if np.isfinite(points[step]))
    return Curve(np.array(steps, np.int64), np.array([points[step] for step in steps], np.float64))
