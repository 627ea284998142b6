"""``match``: the output whose embedding is closest to the embedding of the input. No heads, so it works
before training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np

from polymoe import functional as F
from polymoe import tape
from polymoe.batch import Batch
from polymoe.data import EncodedSplit, Example, TaskData, has_labels, labels
from polymoe.parameters import Parameter
from polymoe.training.objectives.base import Loss, Objective, Prediction, unknown_output
from polymoe.training.objectives.classify import compare, cross_entropy
from polymoe.training.objectives.embedding import embed

LOG_SCALE = math.log(20.0)
MAX_LOG_SCALE = math.log(100.0)
"""Where CLIP stops the scale too: beyond it, the loss only sharpens."""


class Targets(NamedTuple):
    """Each input's candidate among those of the batch and the range of its task's candidates, all [B]
    int64.
    """

    labels: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


class Match(Objective):
    """score = exp(log_scale) * cosine(input, candidate), both embedded by the same adapted model with the
    example's task.

    Where a task's outputs are a set of labels, its candidates are all of them. Where they are free text,
    they are the distinct outputs of the task's examples in the batch (in-batch negatives), and in an
    evaluation those of the evaluated split.
    """

    name = "match"
    metrics = ("accuracy", "macro_f1", "exact_match")
    zero_shot = True

    def __init__(self) -> None:
        super().__init__()
        self.labels: dict[str, tuple[str, ...] | None] = {}  # None: free text
        self.log_scale = Parameter(np.full(1, LOG_SCALE, dtype=np.float32), group="objective")

    def _prepare(self, model: Any, tasks: Mapping[str, TaskData]) -> None:
        self.labels = {}
        for task in tasks.values():
            self._add_task(model, task)

    def _add_task(self, model: Any, task: TaskData) -> None:
        own = labels(task) if has_labels(task) else None
        if own is None and len({e.output for e in task.train + task.valid}) < 2:
            labels(task)  # raises: one output only
        self.labels[task.name] = own

    def candidates(self, task: str, examples: Sequence[Example]) -> list[str]:
        """What an input of ``task`` is compared with: the task's labels, or the distinct outputs of
        ``examples``.
        """
        own = self.labels[task]
        return sorted({e.output for e in examples}) if own is None else list(own)

    def batch(self, model: Any, split: EncodedSplit, indices: np.ndarray, seed: int, step: int) -> Batch:
        """The inputs, followed by the candidates of their tasks as further examples."""
        inputs = split.batch(indices, seed=seed, step=step)
        assert inputs.token_ids is not None and inputs.task_ids is not None
        examples = [split.examples[i] for i in indices]
        texts: list[str] = []
        tasks: list[str] = []
        ranges: dict[str, tuple[int, int, dict[str, int]]] = {}
        for task in dict.fromkeys(model.tasks.names[t] for t in np.unique(inputs.task_ids)):
            own = self.candidates(task, [e for e in examples if e.task == task])
            start = len(texts)
            ranges[task] = (start, start + len(own), {text: start + i for i, text in enumerate(own)})
            texts += own
            tasks += [task] * len(own)
        starts, ends = (np.array([ranges[e.task][k] for e in examples], dtype=np.int64) for k in (0, 1))
        for e in examples:
            if e.output not in ranges[e.task][2]:
                raise unknown_output(e, self.labels[e.task] or ())
        columns = np.array([ranges[e.task][2][e.output] for e in examples], dtype=np.int64)
        tokens = self.tokenizer(model).encode(texts)
        return replace(
            inputs,
            token_ids=np.concatenate([inputs.token_ids, tokens.ids.astype(np.int64)]),
            cu_seqlens=np.concatenate([inputs.cu_seqlens, inputs.n_tokens + tokens.cu_seqlens[1:]]),
            task_ids=np.concatenate([inputs.task_ids, model.tasks.ids(tasks)]),
            example_ids=np.concatenate(
                [inputs.random_ids, [_candidate_id(*pair) for pair in zip(tasks, texts, strict=True)]]
            ),
            targets=Targets(columns, starts, ends),
        )

    def loss(self, model: Any, batch: Batch) -> Loss:
        """Cross entropy over the candidates of the example's task; its gradient reaches inputs and
        candidates.
        """
        embeddings = tape.l2_normalize(model.embed(batch))
        n = len(batch.targets.labels)
        inputs = tape.embedding(np.arange(n), embeddings)
        candidates = tape.embedding(np.arange(n, batch.n_examples), embeddings)
        return cross_entropy(
            tape.scale_by(tape.dense(inputs, candidates, None), self.log_scale), batch.targets
        )

    def constrain(self) -> None:
        """Keep the scale within 1 .. 100."""
        np.clip(self.log_scale.data, 0.0, MAX_LOG_SCALE, out=self.log_scale.data)

    def _predict(
        self, model: Any, embeddings: np.ndarray, names: list[str], candidates: Sequence[str] | None
    ) -> list[Prediction]:
        result: list[Prediction | None] = [None] * len(names)
        for task in dict.fromkeys(names):
            own = list(candidates) if candidates is not None else list(self.labels[task] or ())
            if not own:
                raise ValueError(
                    f"candidates: expected texts to choose from ({task} has free-text outputs), got none"
                )
            rows = [i for i, name in enumerate(names) if name == task]
            for i, row in zip(rows, self._cosines(model, task, embeddings[rows], own), strict=True):
                best = int(row.argmax())
                result[i] = Prediction(own[best], float(row[best]), dict(zip(own, row.tolist(), strict=True)))
        return [prediction for prediction in result if prediction is not None]

    def _evaluate(
        self, model: Any, task: str, embeddings: np.ndarray, examples: Sequence[Any]
    ) -> dict[str, float]:
        own = self.candidates(task, examples)
        best = self._cosines(model, task, embeddings, own).argmax(axis=1)
        return compare(examples, [own[i] for i in best])

    def _cosines(self, model: Any, task: str, embeddings: np.ndarray, candidates: list[str]) -> np.ndarray:
        """[n, K] cosines of embedded inputs and candidate texts."""
        tokens = self.tokenizer(model).encode(candidates)
        others = embed(model, tokens, model.tasks.ids([task] * len(candidates)))
        return F.dense(F.l2_normalize(embeddings)[0], F.l2_normalize(others)[0], None)[0]

    def settings(self) -> dict[str, Any]:
        """With the labels of each task, or null for free text."""
        return {
            **super().settings(),
            "labels": {name: own and list(own) for name, own in self.labels.items()},
        }

    def _restore(self, model: Any, settings: Mapping[str, Any]) -> None:
        self.labels = {name: own and tuple(own) for name, own in settings["labels"].items()}


def _candidate_id(task: str, text: str) -> int:
    """What keys a candidate's noise: the same text of the same task is the same example wherever it turns
    up.
    """
    return (
        int.from_bytes(blake2b(f"{task}\0candidate\0{text}".encode(), digest_size=8).digest(), "little") >> 1
    )
