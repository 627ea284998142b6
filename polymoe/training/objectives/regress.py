"""``regress``: a number per text, by a linear head per task on standardised targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from polymoe import functional as F
from polymoe import tape
from polymoe.batch import Batch
from polymoe.data import EncodedSplit, TaskData, numbers
from polymoe.tape import data_of, differentiable
from polymoe.training.metrics import regression
from polymoe.training.objectives.base import Loss, Objective, Prediction, head


class Targets(NamedTuple):
    """Each example's standardised number [B] float32 and its task's row of the head [B] int64."""

    values: np.ndarray
    rows: np.ndarray


class Regress(Objective):
    """number = mean + std * (embedding w^T + b), with mean and std of the task's training outputs and its
    own w and b.

    ``mean`` and ``std`` are by task name.
    """

    name = "regress"
    metrics = ("spearman", "pearson")

    def __init__(self) -> None:
        super().__init__()
        self.scales: dict[str, tuple[float, float]] = {}  # task -> mean, standard deviation

    def _prepare(self, model: Any, tasks: Mapping[str, TaskData]) -> None:
        self._make({name: _scale(task) for name, task in tasks.items()}, model.base.hidden_size)

    def _add_task(self, model: Any, task: TaskData) -> None:
        self._make({**self.scales, task.name: _scale(task)}, model.base.hidden_size)

    def _make(self, scales: dict[str, tuple[float, float]], hidden_size: int) -> None:
        self.scales = scales
        self.rows = {name: row for row, name in enumerate(scales)}
        self.weight = head((len(scales), hidden_size))
        self.bias = head((len(scales),))

    def batch(self, model: Any, split: EncodedSplit, indices: np.ndarray, seed: int, step: int) -> Batch:
        """Targets are standardised numbers."""
        examples = [split.examples[i] for i in indices]
        mean, std = np.array([self.scales[e.task] for e in examples]).T
        values = ((numbers(examples) - mean) / std).astype(np.float32)
        rows = np.array([self.rows[e.task] for e in examples], dtype=np.int64)
        return replace(split.batch(indices, seed=seed, step=step), targets=Targets(values, rows))

    def loss(self, model: Any, batch: Batch) -> Loss:
        """Mean squared error of the standardised numbers."""
        y = take_columns(tape.dense(model.embed(batch), self.weight, self.bias), batch.targets.rows)
        _, saved = F.mse(data_of(y), batch.targets.values)
        return Loss(tape.mse(y, batch.targets.values), saved.per_example)

    def _predict(
        self, model: Any, embeddings: np.ndarray, names: list[str], candidates: Sequence[str] | None
    ) -> list[Prediction]:
        values = [
            float(self._values(name, row[None])[0]) for name, row in zip(names, embeddings, strict=True)
        ]
        return [Prediction(f"{value:.6g}", value, {}) for value in values]

    def _evaluate(
        self, model: Any, task: str, embeddings: np.ndarray, examples: Sequence[Any]
    ) -> dict[str, float]:
        return regression(numbers(examples).tolist(), self._values(task, embeddings).tolist())

    def _values(self, task: str, embeddings: np.ndarray) -> np.ndarray:
        mean, std = self.scales[task]
        y = F.dense(embeddings, self.weight.data, self.bias.data)[0][:, self.rows[task]]
        return np.asarray(y.astype(np.float64) * std + mean)

    def settings(self) -> dict[str, Any]:
        """With mean and standard deviation of each task."""
        return {**super().settings(), "scales": {name: list(scale) for name, scale in self.scales.items()}}

    def _restore(self, model: Any, settings: Mapping[str, Any]) -> None:
        self._make(
            {name: tuple(settings["scales"][name]) for name in settings["tasks"]}, model.base.hidden_size
        )


def _scale(task: TaskData) -> tuple[float, float]:
    """Mean and standard deviation of a task's training numbers."""
    values = numbers(task.train)
    if not values.size or values.min() == values.max():
        raise ValueError(
            f"{task.name}: expected at least two different numbers, got {sorted(set(values.tolist()))}"
        )
    return float(values.mean()), float(values.std())


class _Saved(NamedTuple):
    shape: tuple[int, ...]
    columns: np.ndarray


class _Grads(NamedTuple):
    dx: np.ndarray


def _take_columns(x: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, _Saved]:
    """y[b] = x[b, columns[b]]: x [B, C], columns [B] -> y [B]."""
    return x[np.arange(len(columns)), columns], _Saved(x.shape, columns)


def _take_columns_backward(saved: _Saved, dy: np.ndarray) -> _Grads:
    dx: np.ndarray = np.zeros(saved.shape, dtype=dy.dtype)
    dx[np.arange(len(saved.columns)), saved.columns] = dy
    return _Grads(dx)


take_columns = differentiable(_take_columns, _take_columns_backward)
