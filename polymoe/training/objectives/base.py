"""What every objective is: targets for a batch, a loss, predictions, an evaluation, and a state that is
saved with the adapter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from polymoe.batch import Batch
from polymoe.data import EncodedSplit, Example, TaskData, Tokenizer, encode_split
from polymoe.files import json_bytes, read_json, read_safetensors, safetensors_bytes, write_files
from polymoe.nn import Module
from polymoe.parameters import Parameter
from polymoe.tape import Node
from polymoe.training.metrics import Evaluation, summarize
from polymoe.training.objectives.embedding import BATCH_TOKENS, Observe, embed

HEADS = "heads.safetensors"
SETTINGS = "objective.json"


class Loss(NamedTuple):
    """The mean over the examples (0-d, on the tape), the loss of each one [B], and how much of that mean each
    is [B] float64 (None: 1)."""

    mean: Node | np.ndarray
    per_example: np.ndarray
    weights: np.ndarray | None = None


@dataclass(frozen=True)
class Prediction:
    """The output for one text and how sure it is: a probability, a cosine, or the number itself; ``scores``
    of all choices.
    """

    output: str
    score: float
    scores: dict[str, float]


class Objective(Module):
    """What is trained for. A subclass says how; its parameters and :meth:`settings` are stored beside the
    adapter.

    ``name`` selects it in recipes; ``metrics`` are those whose mean can select the best step, the first by
    default, the more the better but for those in ``lower_is_better``; ``zero_shot`` tells whether an
    evaluation before training means anything; ``eval_examples``: of a task's test part, so many are what
    training evaluates (None: all).
    """

    name: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]]
    lower_is_better: ClassVar[frozenset[str]] = frozenset()
    zero_shot: bool = False
    eval_examples: int | None = None

    def __init__(self) -> None:
        self.task_names: tuple[str, ...] = ()
        self.max_length: int | None = None
        self.tokenizer_digest: str | None = None

    @property
    def prepared(self) -> bool:
        """Whether it knows its tasks."""
        return bool(self.task_names)

    def prepare(self, model: Any, tasks: Mapping[str, TaskData], max_length: int | None = None) -> None:
        """Learn labels, numbers and sizes from the training data of ``tasks``, all of which the model must
        know.

        Texts will be cut to ``max_length`` tokens where the base takes more. Test is not looked at.
        """
        model.tasks.ids(list(tasks))
        self.max_length, self.tokenizer_digest = max_length, _digest(model)
        self._prepare(model, tasks)
        self.task_names = tuple(tasks)

    def _prepare(self, model: Any, tasks: Mapping[str, TaskData]) -> None:
        raise NotImplementedError

    def add_task(self, model: Any, task: TaskData, shared: bool = True) -> None:
        """Learn one more task, which the model must know, as :meth:`prepare` would.

        Rows of the other tasks keep their bits and are not trained any more; nor is, with ``shared`` False,
        what all tasks share. ValueError for a task that it knows.
        """
        model.tasks.id(task.name)
        if task.name in self.task_names:
            raise ValueError(f"task: expected one besides {list(self.task_names)}, got {task.name!r}")
        before = dict(self.named_parameters())
        self._add_task(model, task)
        for name, p in self.named_parameters():
            if (old := before[name]) is not p:
                p.data[: len(old.data)] = old.data
                p.frozen = range(len(old.data))
            elif not shared:
                p.trainable = False
        self.task_names += (task.name,)

    def _add_task(self, model: Any, task: TaskData) -> None:
        """Make parameters with rows of a further task the longer."""
        raise NotImplementedError

    def batch(self, model: Any, split: EncodedSplit, indices: np.ndarray, seed: int, step: int) -> Batch:
        """The examples at ``indices`` with their targets, ready for :meth:`loss`."""
        raise NotImplementedError

    def loss(self, model: Any, batch: Batch) -> Loss:
        """Loss of a batch of :meth:`batch`; differentiable under a tape."""
        raise NotImplementedError

    def constrain(self) -> None:
        """Bring the parameters back into their range after an optimiser step."""

    def predict(
        self,
        model: Any,
        texts: Sequence[str],
        task: str | Sequence[str],
        candidates: Sequence[str] | None = None,
        batch_tokens: int = BATCH_TOKENS,
    ) -> list[Prediction]:
        """The output for each text; ``task`` is the name for all texts or one name each. KeyError for an
        unknown task.
        """
        names = self._names(texts, task)
        model.tasks.ids(names)
        if not len(texts):
            return []
        return self._predict_texts(model, texts, names, candidates, batch_tokens)

    def _names(self, texts: Sequence[str], task: str | Sequence[str]) -> list[str]:
        """The task of each text, checked."""
        if isinstance(texts, str):
            raise TypeError("texts: expected a sequence of strings, got a string")
        names = [task] * len(texts) if isinstance(task, str) else list(task)
        if len(names) != len(texts):
            raise ValueError(f"task: expected {len(texts)} names, got {len(names)}")
        self.check_tasks(names)
        return names

    def _predict_texts(
        self,
        model: Any,
        texts: Sequence[str],
        names: list[str],
        candidates: Sequence[str] | None,
        batch_tokens: int,
    ) -> list[Prediction]:
        ids = model.tasks.ids(names)
        embeddings = embed(model, self.tokenizer(model).encode(texts), ids, batch_tokens)
        return self._predict(model, embeddings, names, candidates)

    def _predict(
        self, model: Any, embeddings: np.ndarray, names: list[str], candidates: Sequence[str] | None
    ) -> list[Prediction]:
        raise NotImplementedError

    def validate(self, model: Any, split: EncodedSplit, metric: str, observe: Observe = None) -> Evaluation:
        """The evaluation that selects the best step by ``metric``; what takes long may be left out."""
        return self.evaluate(model, split, observe=observe)

    def evaluate(
        self,
        model: Any,
        split: EncodedSplit,
        batch_tokens: int = BATCH_TOKENS,
        observe: Observe = None,
    ) -> Evaluation:
        """Metrics of each task that has examples in ``split``; ValueError if there are none at all.

        ``observe`` is told of each batch of inputs.
        """
        self._check_split(split)
        embeddings = embed(model, split.tokens, split.task_ids, batch_tokens, observe)
        return summarize(
            {
                name: self._evaluate(model, name, embeddings[part], split.examples[part])
                for name, part in split.parts()
            }
        )

    def _evaluate(
        self, model: Any, task: str, embeddings: np.ndarray, examples: Sequence[Any]
    ) -> dict[str, float]:
        raise NotImplementedError

    def encode(self, model: Any, tasks: Mapping[str, TaskData], split: str) -> EncodedSplit:
        """One split of ``tasks``, tokenized as this objective wants it."""
        return encode_split(tasks, split, self.tokenizer(model), model.tasks)

    def tokenizer(self, model: Any) -> Tokenizer:
        """The base's tokenizer, cut to ``max_length``."""
        own: Tokenizer = model.base.tokenizer
        if own is None:
            raise ValueError("base: expected one with a tokenizer, got one without")
        if self.max_length is None or self.max_length >= own.max_length:
            return own
        return Tokenizer(own.tokenizer, self.max_length, own.prefix, own.chat_template)

    def recipe(self) -> dict[str, Any]:
        """What a recipe says of it beside its name."""
        return {}

    def settings(self) -> dict[str, Any]:
        """What :meth:`restore` needs beside the parameters, as JSON values."""
        return {
            "name": self.name,
            "tasks": list(self.task_names),
            "max_length": self.max_length,
            "tokenizer": self.tokenizer_digest,
        }

    def restore(self, model: Any, settings: Mapping[str, Any], parameters: Mapping[str, np.ndarray]) -> None:
        """Become the objective that gave these settings and parameters. ValueError where they do not fit, or
        where texts become other tokens."""
        model.tasks.ids(settings["tasks"])
        made, here = settings.get("tokenizer"), _digest(model)
        if None not in (made, here) and made != here:
            raise ValueError(
                f"tokenizer: expected the one that this was trained with (digest {made}), got that of "
                f"{model.base.name!r} ({here})"
            )
        self.max_length, self.tokenizer_digest = settings["max_length"], made
        self._restore(model, settings)
        own = dict(self.named_parameters())
        if own.keys() != parameters.keys():
            raise ValueError(f"{HEADS}: expected parameters {sorted(own)}, got {sorted(parameters)}")
        for name, parameter in own.items():
            if parameters[name].shape != parameter.shape:
                raise ValueError(
                    f"{HEADS}: {name}: expected shape {parameter.shape}, got {parameters[name].shape}"
                )
            parameter.data[...] = parameters[name]
        self.task_names = tuple(settings["tasks"])

    def _restore(self, model: Any, settings: Mapping[str, Any]) -> None:
        """Take over the settings and make the parameters."""

    def save(self, folder: Path) -> None:
        """Write ``heads.safetensors`` and ``objective.json`` into an adapter's folder."""
        parameters = {name: p.data for name, p in self.named_parameters()}
        write_files(folder, {HEADS: safetensors_bytes(parameters), SETTINGS: json_bytes(self.settings())})

    def _check_split(self, split: EncodedSplit) -> None:
        if not len(split):
            raise ValueError("split: expected at least one example, got none")
        self.check_tasks(list(split.sizes))

    def check_tasks(self, names: Sequence[str]) -> None:
        """KeyError for a task that it was not prepared for."""
        for name in dict.fromkeys(names):
            if name not in self.task_names:
                raise KeyError(f"task: expected one of {list(self.task_names)}, got {name!r}")


def _digest(model: Any) -> str | None:
    """Of the base's tokenizer; None where it has none, or numbers in the place of texts."""
    own = model.base.tokenizer
    return own.digest if isinstance(own, Tokenizer) else None


def read_objective_files(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Settings and parameters that :meth:`Objective.save` wrote; ValueError that names the file where one
    is broken.
    """
    path = folder / SETTINGS
    settings = read_json(path)
    if not isinstance(settings, dict) or not {"name", "tasks", "max_length"} <= settings.keys():
        raise ValueError(f"{path}: expected an object with name, tasks and max_length")
    return settings, read_safetensors(folder / HEADS)


def unknown_output(example: Example, known: Sequence[str]) -> ValueError:
    """The error for a training example whose output the objective was not prepared for."""
    return ValueError(
        f"{example.task}: {example.where}: output: expected one of {list(known)}, got {example.output!r}"
    )


def head(shape: tuple[int, ...]) -> Parameter:
    """A head's parameter; it starts from zero, so that no seed decides what an untrained head says."""
    return Parameter(np.zeros(shape, dtype=np.float32), group="heads")
