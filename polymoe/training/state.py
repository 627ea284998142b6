"""Where a run stands: all numbers that a checkpoint keeps beside the parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from polymoe.training.metrics import Evaluation


class Window(NamedTuple):
    """A finished accumulation: the mean loss, that of each task, and the mean of the auxiliary losses, None
    where there are none."""

    loss: float
    tasks: dict[str, float]
    auxiliary: float | None


@dataclass
class State:
    """``step`` counts optimiser steps, ``micro_step`` batches; ``batch`` is the next one of ``epoch``.

    ``window`` is the accumulation under way: by task the weighted sum of losses and the sum of the weights;
    ``window_batches`` its batches; ``window_auxiliary`` its auxiliary losses times the weights, None where
    there are none.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    micro_step: int = 0
    tokens: int = 0
    examples: int = 0
    train_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    window: dict[str, list[float]] = field(default_factory=dict)
    window_batches: int = 0
    window_auxiliary: float | None = None
    best_step: int | None = None
    best_value: float | None = None
    evaluations_since_best: int = 0
    validation: Evaluation | None = None
    zero_shot: Evaluation | None = None

    @property
    def name(self) -> str:
        """Of its checkpoint."""
        return f"step-{self.step}" + (f".{self.window_batches}" if self.window_batches else "")

    @property
    def window_weight(self) -> float:
        """Examples of the window, or whatever its mean counts."""
        return sum(weight for _, weight in self.window.values())

    def add_batch(
        self,
        tasks: Sequence[str],
        losses: np.ndarray,
        weights: np.ndarray,
        auxiliary: float | None,
        tokens: int,
    ) -> None:
        """A batch of the window is done: the task, loss and weight of each of its examples."""
        for name, loss, weight in zip(tasks, losses.tolist(), weights.tolist(), strict=True):
            entry = self.window.setdefault(name, [0.0, 0.0])
            entry[0] += weight * loss
            entry[1] += weight
        if auxiliary is not None:
            self.window_auxiliary = (self.window_auxiliary or 0.0) + float(weights.sum()) * auxiliary
        self.tokens += tokens
        self.examples += len(tasks)
        self.micro_step += 1
        self.window_batches += 1
        self.batch += 1

    def end_step(self) -> Window:
        """The optimiser has taken the window: the next one begins."""
        n, auxiliary = self.window_weight, self.window_auxiliary
        done = Window(
            sum(loss for loss, _ in self.window.values()) / n,
            {name: loss / weight for name, (loss, weight) in sorted(self.window.items())},
            None if auxiliary is None else auxiliary / n,
        )
        self.step += 1
        self.window, self.window_batches, self.window_auxiliary = {}, 0, None
        return done
