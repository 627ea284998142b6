"""``classify``: a linear head per task over the embedding; the labels are the task's outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from polymoe import functional as F
from polymoe import tape
from polymoe.batch import Batch
from polymoe.data import EncodedSplit, Example, TaskData, labels
from polymoe.tape import data_of
from polymoe.training.metrics import classification
from polymoe.training.objectives.base import Loss, Objective, Prediction, head, unknown_output


class Targets(NamedTuple):
    """Each example's column and the range of columns of its task, all [B] int64."""

    labels: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


class Classify(Objective):
    """logits = embedding W^T + b, one row of W [C, D] for each label of each task; the softmax goes over
    the task's own rows.
    """

    name = "classify"
    metrics = ("accuracy", "macro_f1", "exact_match")

    def __init__(self) -> None:
        super().__init__()
        self.labels: dict[str, tuple[str, ...]] = {}

    def _prepare(self, model: Any, tasks: Mapping[str, TaskData]) -> None:
        self._make({name: labels(task) for name, task in tasks.items()}, model.base.hidden_size)

    def _add_task(self, model: Any, task: TaskData) -> None:
        self._make({**self.labels, task.name: labels(task)}, model.base.hidden_size)

    def _make(self, labels: dict[str, tuple[str, ...]], hidden_size: int) -> None:
        self.labels = labels
        ends = np.cumsum([len(own) for own in labels.values()]).tolist()
        self.ranges = {
            name: (end - len(own), end) for (name, own), end in zip(labels.items(), ends, strict=True)
        }
        self.columns = {
            pair: i for i, pair in enumerate((name, label) for name, own in labels.items() for label in own)
        }
        self.weight = head((ends[-1], hidden_size))
        self.bias = head((ends[-1],))

    def batch(self, model: Any, split: EncodedSplit, indices: np.ndarray, seed: int, step: int) -> Batch:
        """Targets are columns of the head."""
        examples = [split.examples[i] for i in indices]
        starts, ends = np.array([self.ranges[e.task] for e in examples], dtype=np.int64).T.copy()
        columns = np.array([self._column(e) for e in examples], dtype=np.int64)
        return replace(split.batch(indices, seed=seed, step=step), targets=Targets(columns, starts, ends))

    def _column(self, example: Example) -> int:
        column = self.columns.get((example.task, example.output))
        if column is None:
            raise unknown_output(example, self.labels[example.task])
        return column

    def loss(self, model: Any, batch: Batch) -> Loss:
        """Cross entropy."""
        logits = tape.dense(model.embed(batch), self.weight, self.bias)
        return cross_entropy(logits, batch.targets)

    def _predict(
        self, model: Any, embeddings: np.ndarray, names: list[str], candidates: Sequence[str] | None
    ) -> list[Prediction]:
        logits = self._logits(embeddings)
        result = []
        for row, name in zip(logits, names, strict=True):
            start, end = self.ranges[name]
            own = row[start:end].astype(np.float64)
            p = np.exp(own - own.max())
            p /= p.sum()
            best = int(own.argmax())
            scores = dict(zip(self.labels[name], p.tolist(), strict=True))
            result.append(Prediction(self.labels[name][best], float(p[best]), scores))
        return result

    def _evaluate(
        self, model: Any, task: str, embeddings: np.ndarray, examples: Sequence[Any]
    ) -> dict[str, float]:
        start, end = self.ranges[task]
        best = self._logits(embeddings)[:, start:end].argmax(axis=1)
        return compare(examples, [self.labels[task][i] for i in best])

    def _logits(self, embeddings: np.ndarray) -> np.ndarray:
        return F.dense(embeddings, self.weight.data, self.bias.data)[0]

    def settings(self) -> dict[str, Any]:
        """With the labels of each task, in the order of the head's rows."""
        return {**super().settings(), "labels": {name: list(own) for name, own in self.labels.items()}}

    def _restore(self, model: Any, settings: Mapping[str, Any]) -> None:
        self._make(
            {name: tuple(settings["labels"][name]) for name in settings["tasks"]}, model.base.hidden_size
        )


def cross_entropy(logits: Any, targets: Any) -> Loss:
    """Softmax over each example's range of columns; ``targets`` has labels, starts and ends."""
    args = (targets.labels, targets.starts, targets.ends)
    _, saved = F.cross_entropy(data_of(logits), *args)
    return Loss(tape.cross_entropy(logits, *args), saved.per_example)


def compare(examples: Sequence[Example], predicted: Sequence[str]) -> dict[str, float]:
    """Metrics of a task; a prediction is right if it is any of the accepted outputs."""
    expected = [p if p in e.outputs else e.output for e, p in zip(examples, predicted, strict=True)]
    return classification(expected, predicted)
