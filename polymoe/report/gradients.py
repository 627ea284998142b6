"""Do the tasks pull the shared parameters the same way: cosines of their gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from polymoe.tape import Tape, data_of

if TYPE_CHECKING:
    from polymoe.training import Run

BATCH_SIZE = 16


@dataclass(frozen=True, eq=False)
class GradientSimilarity:
    """``cosines`` [T, T] float64 of the gradients of ``tasks``, each over at most ``n_texts`` texts; 0 where
    a gradient is zero."""

    tasks: tuple[str, ...]
    cosines: np.ndarray
    n_texts: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {"tasks": list(self.tasks), "cosines": self.cosines.tolist(), "n_texts": self.n_texts}


def gradient_similarity(run: Run, data: Any = None, *, n_texts: int = 64) -> GradientSimilarity:
    """The cosines between the tasks' gradients of the experts' parameters (those that tasks share; rows of a
    router are each task's own), in evaluation: no noise, no dropout, no auxiliary loss.

    ``data``: whatever :func:`polymoe.data.read_tasks` reads, the run's own by default; of each task the first
    ``n_texts`` of its training part count. Parameters and their gradients stay as they were. Holds a gradient
    for each task at once. ValueError without data, or for a task without training texts.
    """
    from polymoe.training.tasks import as_tasks

    if n_texts < 1:
        raise ValueError(f"n_texts: expected 1 or more, got {n_texts}")
    if data is None and (data := run.data) is None:
        raise ValueError(f"data: expected tasks ({run.path} does not say where its own are), got None")
    model, objective = run.model, run.objective
    split = objective.encode(model, as_tasks(data, run.recipe.get("tasks"), run.split_seed), "train")
    if not len(split):
        raise ValueError("data: expected training texts, got none")
    parameters = [*model.adapter_parameters(), *objective.named_parameters()]
    experts = [p for name, p in parameters if ".experts." in name and p.trainable]
    if not experts:
        raise ValueError("run: expected an adapter with trainable experts, got none")
    if empty := [name for name, size in split.sizes.items() if not size]:
        raise ValueError(f"data: expected training texts of each task, got none of {', '.join(empty)}")
    before = {id(p): p.grad for _, p in parameters}
    rows, start = [], 0
    try:
        with model.without_noise(), run.as_trained():
            for size in split.sizes.values():
                for _, p in parameters:
                    p.grad = None
                indices = np.arange(start, start + min(size, n_texts))
                for step, part in enumerate(np.array_split(indices, -(-len(indices) // BATCH_SIZE))):
                    with Tape() as tape:
                        loss = objective.loss(model, objective.batch(model, split, part, 0, step))
                    weight = np.asarray(len(part), data_of(loss.mean).dtype)
                    tape.backward(loss.mean, weight, dlosses=0.0)
                start += size
                flat = [np.zeros(p.data.size) if p.grad is None else p.grad.ravel() for p in experts]
                row = np.concatenate(flat).astype(np.float32)
                rows.append(row / (float(np.linalg.norm(row)) or 1.0))
    finally:
        for _, p in parameters:
            p.grad = before[id(p)]
    units = np.stack(rows)
    return GradientSimilarity(tuple(split.sizes), (units @ units.T).astype(np.float64), n_texts)
