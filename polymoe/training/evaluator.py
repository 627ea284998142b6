"""What a run evaluates: validation, by which its best step is chosen, and test."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

from polymoe.data import EncodedSplit
from polymoe.training.metrics import Evaluation
from polymoe.training.objectives import Objective
from polymoe.training.state import State

Split = Literal["valid", "test"]


class Evaluator:
    """Evaluates ``model`` on either split; seconds and what is best are written into the run's state.

    ``metric``: what the best step is best in. ``tell``: tells the callbacks of an event, by name.
    """

    def __init__(
        self,
        model: Any,
        objective: Objective,
        splits: Mapping[Split, EncodedSplit],
        metric: str,
        tell: Callable[..., None],
    ) -> None:
        self.model, self.objective, self.splits = model, objective, splits
        self.metric, self.tell = metric, tell

    def evaluate(self, split: Split, state: State, selects: bool = False) -> Evaluation:
        """Metrics of a split; where they only select a step, what takes long may be left out."""
        started = time.perf_counter()
        encoded, observe = self.splits[split], partial(self.tell, "on_evaluation_batch", split)
        if selects:
            evaluation = self.objective.validate(self.model, encoded, self.metric, observe)
        else:
            evaluation = self.objective.evaluate(self.model, encoded, observe=observe)
        state.evaluation_seconds += time.perf_counter() - started
        self.tell("on_evaluate", split, evaluation)
        return evaluation

    def select(self, state: State) -> bool:
        """Evaluate on validation, if there is any; whether that is the best so far."""
        if not len(self.splits["valid"]):
            return False
        evaluation = self.evaluate("valid", state, selects=True)
        if self.metric not in evaluation["mean"]:
            raise ValueError(
                f"metric_for_best_model: expected one of {list(evaluation['mean'])} (what these tasks have), "
                f"got {self.metric!r}"
            )
        value, old = evaluation["mean"][self.metric], state.best_value
        lower = self.metric in self.objective.lower_is_better
        best = old is None or (value < old if lower else value > old)
        if best:
            state.best_step, state.best_value, state.validation = state.step, value, evaluation
        state.evaluations_since_best = 0 if best else state.evaluations_since_best + 1
        return best

    def finish(self, state: State) -> tuple[Split, Evaluation | None]:
        """The final evaluation: of test, or of validation where there is no test."""
        if len(self.splits["test"]):
            return "test", self.evaluate("test", state)
        if state.validation is None and len(self.splits["valid"]):
            return "valid", self.evaluate("valid", state)
        return "valid", state.validation  # with these very weights


def metric_for_best_model(objective: Objective, name: str | None) -> str:
    """``name``, or the objective's first metric; ValueError for one that it does not have."""
    metric = name or objective.metrics[0]
    if metric not in objective.metrics:
        raise ValueError(f"metric_for_best_model: expected one of {list(objective.metrics)}, got {metric!r}")
    return metric
