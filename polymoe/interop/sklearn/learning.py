"""Training for estimators, by the trainer that the rest of polymoe uses, and what is left of it: a model and
an objective that can be pickled."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils import check_random_state

from polymoe.adapters import AdaptedModel, AdapterConfig, configure
from polymoe.adapters.experts import EXPERTS
from polymoe.adapters.methods import find_method
from polymoe.adapters.options import AdapterOptions
from polymoe.data import TaskData, Tokens, split_task
from polymoe.data.examples import Example, make_example
from polymoe.functional import batch_invariant
from polymoe.interop.sklearn.features import Features
from polymoe.interop.sklearn.inputs import in_order
from polymoe.models import load_base
from polymoe.training import Trainer, TrainingConfig
from polymoe.training.objectives import Objective, Prediction, make_objective
from polymoe.training.objectives.embedding import embed

ADAPTER = ("r", "n_skills", "n_splits", "lora_alpha", "target_modules")
TRAINING = (
    "epochs", "batch_size", "learning_rate", "router_learning_rate", "head_learning_rate", "weight_decay",
    "max_length", "early_stopping_patience",
)  # fmt: skip
"""Parameters of estimators that are settings of the adapter, and of the trainer."""
NEVER = 10**9
"""Steps between checkpoints that nobody reads; the best step, where there is validation, is saved anyway."""


@lru_cache(maxsize=1)
def shared_base(name: str, dtype: str = "float32") -> Any:
    """The base of that name; the last one stays loaded, for a search fits many estimators over one."""
    return load_base(name, dtype)


@dataclass
class Learned:
    """A model whose adapter is trained, or a base alone, and the ``objective`` with its heads, or None.

    A pickle holds what was learnt, and a base of texts by its name and fingerprint alone: ValueError where
    the base of that name is another one when it is read.
    """

    model: Any
    objective: Objective | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return self.model.tasks.names if isinstance(self.model, AdaptedModel) else ()

    @property
    def tokenizer(self) -> Any:
        """What makes tokens of texts."""
        base = self.model.base if isinstance(self.model, AdaptedModel) else self.model
        return base.tokenizer if self.objective is None else self.objective.tokenizer(self.model)

    def predict(self, tokens: Tokens, names: list[str]) -> list[Prediction]:
        """What the objective says of each, the same in any batch. KeyError for an unknown task."""
        assert self.objective is not None
        with batch_invariant():
            embeddings = embed(self.model, tokens, self.model.tasks.ids(names))
            return self.objective._predict(self.model, embeddings, names, None)

    def __getstate__(self) -> dict[str, Any]:
        adapted = isinstance(self.model, AdaptedModel)
        base, objective = self.model.base if adapted else self.model, self.objective
        reference = base if isinstance(base, Features) else (base.name, base.weight_dtype, base.fingerprint)
        state: dict[str, Any] = {"base": reference}
        if adapted:
            state["config"], state["tasks"] = self.model.config.to_dict(), self.tasks
            state["parameters"] = _values(self.model.adapter_parameters())
        if objective is not None:
            state["objective"] = (objective.settings(), _values(objective.named_parameters()))
        return state

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.model, self.objective = state["base"], None
        if not isinstance(self.model, Features):
            name, dtype, fingerprint = self.model
            self.model = shared_base(name, dtype)
            if self.model.fingerprint != fingerprint:
                raise ValueError(f"base: expected the {name!r} that it was trained on, got another")
        if "config" in state:
            self.model = AdaptedModel(self.model)
            self.model.add_adapter("default", AdapterConfig(**state["config"]), state["tasks"])
            for name, parameter in self.model.adapter_parameters():
                parameter.data[...] = state["parameters"][name]
        if "objective" in state:
            settings, parameters = state["objective"]
            self.objective = make_objective(settings["name"])
            self.objective.restore(self.model, settings, parameters)


def _values(parameters: Any) -> dict[str, np.ndarray]:
    return {name: np.array(p.data) for name, p in parameters}


def _plain(value: Any) -> Any:
    """A number as Python's, for searches draw NumPy's."""
    return value.item() if isinstance(value, np.generic) else value


def _settings(
    given: Mapping[str, Any], more: Mapping[str, Any] | None, kind: type, what: str
) -> dict[str, Any]:
    """The values of both. TypeError for one in ``more`` that ``kind`` does not have, or that has a parameter
    of its own."""
    known = [f.name for f in fields(kind) if f.name not in given and f.name != "seed"]
    for name in more or {}:
        if name not in known:
            raise TypeError(f"{what}: expected settings out of {known}, got {name!r}")
    return {name: _plain(value) for name, value in {**given, **(more or {})}.items()}


def adapter_config(estimator: Any) -> AdapterConfig:
    """The adapter's configuration as an estimator's parameters say it, with the targets that a recipe would
    take. ValueError for a method that comes after another, which an estimator cannot train."""
    method = estimator.method
    if (after := find_method(method).after) is not None:
        raise ValueError(
            f"method: expected one that starts from nothing, got {method!r}, which comes after {after!r}"
        )
    given = {name: getattr(estimator, name) for name in ADAPTER}
    options = _settings(given, estimator.adapter_options, AdapterOptions, "adapter_options")
    options = {name: value for name, value in options.items() if value is not None}
    if "target_modules" not in options:
        options["target_modules"] = EXPERTS[configure(method, **options).experts].usual_targets
    return configure(method, **options)


def training_config(estimator: Any, epochs: int) -> TrainingConfig:
    """The trainer's configuration; ``epochs`` where the parameter is None. ValueError for patience without
    validation."""
    given = {name: getattr(estimator, name) for name in TRAINING}
    if given["epochs"] is None:
        given["epochs"] = epochs
    if given["early_stopping_patience"] is not None and not estimator.validation:
        raise ValueError("validation: expected True (early_stopping_patience is set), got False")
    options = _settings(given, estimator.training_options, TrainingConfig, "training_options")
    seed = _plain(estimator.random_state)
    if not isinstance(seed, int):
        seed = int(check_random_state(seed).randint(2**31 - 1))
    return TrainingConfig(**{"save_steps": NEVER, **options, "seed": seed})


def train(
    base: Any,
    tasks: Mapping[str, TaskData],
    objective: str,
    config: AdapterConfig,
    training: TrainingConfig,
    verbose: bool = False,
) -> tuple[Learned, dict[str, Any]]:
    """Train a new adapter of ``base``, and the summary of the run, of which nothing else stays."""
    model = AdaptedModel(base)
    model.add_adapter("default", config, list(tasks), seed=training.seed)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            dict(tasks),
            objective,
            training,
            Path(folder) / "run",
            progress="auto" if verbose else None,
            zero_shot=False,
        )
        summary = trainer.train()
    return Learned(model, trainer.objective), summary


def make_tasks(
    texts: Sequence[str], outputs: Sequence[Any], names: Sequence[str], validation: bool, seed: int
) -> dict[str, TaskData]:
    """The tasks of samples, in order; with ``validation`` a tenth of each is held out, by the rule of
    :func:`polymoe.data.split_task`."""
    found: dict[str, list[Example]] = {name: [] for name in in_order(names)}
    for i, (text, output, name) in enumerate(zip(texts, outputs, names, strict=True)):
        found[name].append(make_example((text, output), name, "train", i, f"X[{i}]"))
    if validation:
        return {name: split_task(name, {"train": own}, seed) for name, own in found.items()}
    return {name: TaskData(name, tuple(own), (), ()) for name, own in found.items()}


def base_name(base: Any) -> str:
    """The name of a base; TypeError for anything else, such as a base that is loaded."""
    if not isinstance(base, str | os.PathLike):
        raise TypeError(f"base: expected a name or a path, got {type(base).__name__}")
    return os.fspath(base)
