"""The dendrogram of tasks: average linkage over one minus the cosine of their routing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class TaskTree:
    """``order`` [T] int64: the tasks as the leaves lie, like beside like. ``linkage`` [T - 1, 4]: as
    :func:`scipy.cluster.hierarchy.linkage` has it. ``heights`` and ``places`` [T - 1, 4]: the corners of each
    bracket, its distances and where between the leaves 0, 1, ... they lie."""

    order: np.ndarray
    linkage: np.ndarray
    heights: np.ndarray
    places: np.ndarray

    def members(self) -> list[tuple[list[int], list[int], float]]:
        """For each join, the nearest first: the tasks on either side and the distance."""
        groups = [[task] for task in range(len(self.order))]
        found = []
        for left, right, distance, _ in self.linkage:
            pair = groups[int(left)], groups[int(right)]
            found.append((*pair, float(distance)))
            groups.append(pair[0] + pair[1])
        return found


def task_tree(similarity: Any) -> TaskTree:
    """The tree of T >= 2 tasks whose similarities are [T, T] (cosines). Needs scipy (extra ``plots``).

    Raises ImportError without scipy, ValueError for fewer than two tasks.
    """
    similar = np.asarray(similarity, np.float64)
    if len(similar) < 2:
        raise ValueError(f"similarity: expected at least two tasks, got {len(similar)}")
    try:
        from scipy.cluster import hierarchy
    except ImportError as error:
        raise ImportError("scipy: expected the extra polymoe[plots] for a dendrogram, got none") from error
    distance = np.clip(1 - similar[np.triu_indices(len(similar), 1)], 0, None)
    linkage = hierarchy.linkage(distance, "average", optimal_ordering=len(similar) <= 200)
    drawn = hierarchy.dendrogram(linkage, no_plot=True)
    places = (np.array(drawn["icoord"]) - 5) / 10  # scipy puts the leaves at 5, 15, ...
    return TaskTree(np.array(drawn["leaves"], np.int64), linkage, np.array(drawn["dcoord"]), places)
