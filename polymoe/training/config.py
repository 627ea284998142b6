"""What a training run is set to. The defaults stand here and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from polymoe.training.trackers import TRACKERS


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of one run, with Hugging Face's names where it has the setting.

    Routers learn faster than the skills they choose from (Poly uses 1e-1 beside 1e-3), and heads start from
    nothing, so both have their own rate; all three follow one schedule.

    Raises TypeError or ValueError for a value out of range, with the name of the field.
    """

    epochs: int = 3
    """Passes over the training split; 0 trains nothing and evaluates what is there."""
    max_steps: int = -1
    """Optimiser steps; when positive, it replaces ``epochs``."""
    batch_tokens: int = 4096
    """Tokens of a packed batch at most (one example longer than that stands alone)."""
    batch_size: int | None = 32
    """Examples of a batch at most; None leaves it to ``batch_tokens``."""
    gradient_accumulation_steps: int = 1
    """Batches per optimiser step; the loss is the mean over the examples of all of them."""
    gradient_checkpointing: bool = False
    """Keep only what goes into each block of the base, and compute the rest of it again for the gradient:
    less memory, a third to a half more time, the same result to the last bit.
    """
    max_length: int | None = None
    """Tokens of a text at most, never more than the base takes; None takes the base's own limit."""

    learning_rate: float | None = None
    """Of the experts; None takes the method's own, most often 5e-4 / scale, the scale being the adapter's
    lora_alpha / r: the product of the two is what a step of Adam moves the output by.
    """
    router_learning_rate: float = 1e-1
    """Of the routing logits."""
    content_learning_rate: float | None = None
    """Of routers that read the tokens, a matrix before a softmax; None takes the method's own, most often
    1e-3 (a logit's rate would tear it apart).
    """
    head_learning_rate: float = 1e-2
    """Of classification and regression heads and of the temperature of ``match``."""
    weight_decay: float = 0.01
    """Of skills and head matrices; routers, biases and the temperature have none, nor vectors that start as
    1 and multiply."""
    adam_beta1: float = 0.9
    """Decay of the first moment."""
    adam_beta2: float = 0.999
    """Decay of the second moment."""
    adam_epsilon: float = 1e-8
    """Added to the root of the second moment."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm, over all trained parameters together; 0 leaves them as they
    are.
    """
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    """What the learning rates do after the warm-up."""
    warmup_ratio: float = 0.06
    """Share of the steps over which the rates rise from 0."""
    warmup_steps: int = 0
    """The same as a number of steps; when positive, it replaces ``warmup_ratio``."""

    sampling: Literal["proportional", "uniform", "temperature"] = "proportional"
    """How often a task is drawn: by its size, all alike, or by size ** (1 / sampling_temperature)."""
    sampling_temperature: float = 2.0
    """Of ``sampling="temperature"``."""
    seed: int = 0
    """Of the order of the examples and of all noise."""
    batch_invariant: bool = False
    """What the model gives for a text is the same to the last bit in any batch; see
    :func:`polymoe.set_batch_invariant`.
    """

    search_steps: int = 40
    """Evaluations of a task's loss in the search for weights that no gradient finds (lorahub)."""
    search_examples: int = 64
    """Training examples of a task that each of them reads at most."""

    eval_steps: int | None = None
    """Optimiser steps between evaluations on the validation split; None evaluates after every epoch."""
    metric_for_best_model: str | None = None
    """Mean over tasks that selects the best step; None takes the objective's own (accuracy, or spearman for
    ``regress``).
    """
    early_stopping_patience: int | None = None
    """Evaluations without a new best after which training stops; None never stops early."""
    save_steps: int | None = None
    """Optimiser steps between checkpoints; None saves after every evaluation."""
    save_total_limit: int | None = 2
    """Checkpoints kept beside the best one; None keeps all."""
    logging_steps: int = 1
    """Optimiser steps between lines of ``metrics.jsonl``."""
    routing_statistics: bool = True
    """At each evaluation, write to ``metrics.jsonl`` what the routers do, and warn of skills that nobody uses
    and of tasks that are all routed alike.
    """
    report_to: str | tuple[str, ...] = "none"
    """Where the figures go beside ``metrics.jsonl``: tensorboard, wandb, mlflow, several of them, all that
    are installed, or none. See :mod:`polymoe.training.trackers`.
    """

    def __post_init__(self) -> None:
        _integer("epochs", self.epochs, 0)
        for name in ("batch_tokens", "gradient_accumulation_steps", "logging_steps", "search_steps",
                     "search_examples"):  # fmt: skip
            _integer(name, getattr(self, name), 1)
        for name in (
            "batch_size",
            "max_length",
            "eval_steps",
            "early_stopping_patience",
            "save_steps",
            "save_total_limit",
        ):
            if getattr(self, name) is not None:
                _integer(name, getattr(self, name), 1)
        object.__setattr__(self, "report_to", _trackers(self.report_to))
        if not isinstance(self.routing_statistics, bool):
            raise TypeError(f"routing_statistics: expected a bool, got {self.routing_statistics!r}")
        _integer("max_steps", self.max_steps, -1)
        _integer("warmup_steps", self.warmup_steps, 0)
        _integer("seed", self.seed, 0)
        for name in ("batch_invariant", "gradient_checkpointing"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}: expected True or False, got {getattr(self, name)!r}")
        for name in ("learning_rate", "content_learning_rate"):
            if getattr(self, name) is not None:
                _number(name, getattr(self, name), 0.0, math.inf)
        for name in (
            "router_learning_rate",
            "head_learning_rate",
            "weight_decay",
            "max_grad_norm",
        ):
            _number(name, getattr(self, name), 0.0, math.inf)
        for name in ("adam_beta1", "adam_beta2", "warmup_ratio"):
            _number(name, getattr(self, name), 0.0, 1.0)
        for name in ("adam_epsilon", "sampling_temperature"):
            _number(name, getattr(self, name), 0.0, math.inf)
            if getattr(self, name) == 0:
                raise ValueError(f"{name}: expected a number above 0, got 0")
        _choice(
            "lr_scheduler_type",
            self.lr_scheduler_type,
            ("linear", "cosine", "constant", "constant_with_warmup"),
        )
        _choice("sampling", self.sampling, ("proportional", "uniform", "temperature"))

    def to_dict(self) -> dict[str, Any]:
        """All settings, as written to ``recipe.yaml`` and to checkpoints."""
        return asdict(self)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> TrainingConfig:
        """The settings of :meth:`to_dict`; TypeError for one that does not exist."""
        known = [f.name for f in fields(cls)]
        unknown = [name for name in settings if name not in known]
        if unknown:
            raise TypeError(f"training: expected settings out of {known}, got {unknown}")
        return cls(**settings)

    def learning_rates(self, defaults: Mapping[str, float]) -> dict[str, float]:
        """The rate of each group of parameters; ``defaults``: of those that are None here, by group."""
        given = {"skills": self.learning_rate, "content": self.content_learning_rate}
        found = {group: defaults[group] if rate is None else rate for group, rate in given.items()}
        head = self.head_learning_rate
        others = {"gains": found["skills"], "router": self.router_learning_rate}
        return {**found, **others, "heads": head, "objective": head}

    def warmup(self, total: int) -> int:
        """Number of warm-up steps of a run of ``total`` steps."""
        return self.warmup_steps if self.warmup_steps > 0 else math.ceil(total * self.warmup_ratio)


def _trackers(names: Any) -> tuple[str, ...]:
    """The names of ``report_to``, () for none."""
    given = (names,) if isinstance(names, str) else () if names is None else tuple(names)
    known = (*TRACKERS, "all", "none")
    for name in given:
        if name not in known:
            raise ValueError(f"report_to: expected some of {list(known)}, got {name!r}")
    if "none" in given and len(given) > 1:
        raise ValueError(f"report_to: expected 'none' alone, got {list(given)}")
    return () if given == ("none",) else given


def _integer(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name}: expected an integer from {least} on, got {value}")


def _number(name: str, value: Any, least: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    if not (least <= value <= most and math.isfinite(value)):
        raise ValueError(f"{name}: expected a finite number from {least} to {most}, got {value}")


def _choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {list(choices)}, got {value!r}")
