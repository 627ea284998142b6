"""AdamW over the segments of the flat parameters: a rate of their own for routers, skills and heads, one
norm for all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from polymoe import functional as F
from polymoe.parameters import FlatParameters, Segment
from polymoe.training.config import TrainingConfig
from polymoe.training.schedules import SCHEDULES

USUAL_RATES = {"skills": 5e-4, "content": 1e-3}


class Update(NamedTuple):
    """What one optimiser step did: the norm of the gradient before clipping and the learning rate of each
    group.
    """

    grad_norm: float
    learning_rates: dict[str, float]


class AdamW:
    """torch.optim.AdamW's update on every trainable segment of ``parameters``; frozen ones keep every bit.

    ``step`` counts finished updates, ``total`` is the number that the schedule runs over, ``default_rates``
    are those that the configuration leaves to the method, by group. ``m`` and ``v`` are flat buffers laid out
    as the parameters.
    """

    def __init__(
        self,
        parameters: FlatParameters,
        config: TrainingConfig,
        total: int,
        default_rates: Mapping[str, float] = USUAL_RATES,
    ) -> None:
        self.parameters, self.config, self.total = parameters, config, total
        self.rates = config.learning_rates(default_rates)
        self.step = 0
        self.m: np.ndarray = np.zeros_like(parameters.data)
        self.v: np.ndarray = np.zeros_like(parameters.data)
        self.segments = [s for s in parameters.segments if s.trainable]
        if not self.segments:
            raise ValueError("parameters: expected at least one trainable parameter, got none")
        self._offsets = np.array([s.offset for s in self.segments], dtype=np.int64)
        self._lengths = np.array([s.length for s in self.segments], dtype=np.int64)
        self._decays = np.array([_decays(s) * config.weight_decay for s in self.segments], dtype=np.float64)

    def learning_rates(self) -> dict[str, float]:
        """The rate of each group in the next update."""
        c = self.config
        factor = SCHEDULES[c.lr_scheduler_type](self.step, c.warmup(self.total), self.total)
        groups = dict.fromkeys(s.group for s in self.segments)
        return {group: factor * self.rates[group] for group in groups}

    def grad_norm(self, n_examples: float = 1) -> float:
        """Norm of the summed gradients divided by ``n_examples``, over the trainable segments."""
        return F.global_norm(self.parameters.grad, self._offsets, self._lengths) / n_examples

    def update(self, n_examples: float = 1) -> Update:
        """One step on the summed gradients of ``n_examples`` examples (or tokens); the caller zeroes the
        gradients afterwards.

        Raises FloatingPointError when the norm is not finite; parameters and moments are then as before.
        """
        norm = self.grad_norm(n_examples)
        if not math.isfinite(norm):
            raise FloatingPointError(f"gradient: expected a finite norm, got {norm}")
        limit = self.config.max_grad_norm
        clip = min(1.0, limit / (norm + 1e-6)) if limit > 0 else 1.0
        rates = self.learning_rates()
        self.step += 1
        p, c = self.parameters, self.config
        lr = np.array([rates[s.group] for s in self.segments], dtype=np.float64)
        F.adamw_step(
            p.data, p.grad, self.m, self.v, self._offsets, self._lengths, lr, self._decays,
            c.adam_beta1, c.adam_beta2, c.adam_epsilon, self.step, clip / n_examples,
        )  # fmt: skip
        return Update(norm, rates)


def _decays(segment: Segment) -> bool:
    return segment.group in ("skills", "heads") and len(segment.shape) > 1
