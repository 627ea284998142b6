"""The adapter of one linear layer: router, experts and mixing put together."""

from __future__ import annotations

from typing import Any

import numpy as np

from polymoe import random, tape
from polymoe.adapters.config import AdapterConfig
from polymoe.adapters.experts import LoraExperts
from polymoe.adapters.routers import ROUTERS
from polymoe.batch import Batch, TaskRegistry
from polymoe.functional import PackedWeight
from polymoe.nn import Linear, Module


class LinearAdapter(Module):
    """y = x W^T + bias + scale * (x A_g^T) B_g, where g is the group of the example and the router says how
    A_g, B_g are mixed.

    ``name`` is that of the module (rank and alpha patterns, randomness), ``shape`` that of its weight (O, D).
    """

    def __init__(
        self, config: AdapterConfig, n_tasks: int, shape: tuple[int, int], name: str, seed: int, dtype: Any
    ) -> None:
        self.name = name
        self.scale = config.scale(name)
        self.dropout = config.lora_dropout
        self.router = ROUTERS[config.router](config, n_tasks, name, seed, dtype)
        self.experts = LoraExperts(config, self.router.n_experts, shape, name, seed, dtype)

    def __call__(self, x: Any, weight: PackedWeight, bias: np.ndarray | None, batch: Batch) -> Any:
        """y [N, O] of x [N, D]."""
        routing = self.router(batch, x)
        lora_A, lora_B, weights = self.experts(routing.weights)
        groups = (routing.adapter_ids, batch.cu_seqlens)
        if not (self.training and self.dropout):
            return tape.linear(x, weight, bias, lora_A, lora_B, weights, *groups, self.scale)
        # As in PEFT, what is dropped is the input of the low-rank branch alone, so the branch is a pass of
        # its own.
        dropped = tape.dropout(x, self._mask(x, batch))
        term = tape.linear(dropped, None, None, lora_A, lora_B, weights, *groups, self.scale)
        return tape.add(tape.linear(x, weight, bias), term)

    def _mask(self, x: Any, batch: Batch) -> np.ndarray:
        """[N, D]: 0 with probability p, else 1/(1-p); a token's row depends on its example and place
        alone."""
        lengths = np.diff(batch.cu_seqlens)
        n_in, longest = x.shape[1], int(lengths.max(initial=0))
        u = random.uniform(batch.seed, "dropout", batch.step, self.name, batch.random_ids, longest * n_in)
        rows = u.reshape(len(lengths), longest, n_in)[np.arange(longest) < lengths[:, None]]
        return np.asarray((rows >= self.dropout) / (1 - self.dropout), tape.data_of(x).dtype)

    def extra_repr(self) -> str:
        """Scale and dropout."""
        return f"scale={self.scale:g}" + (f", lora_dropout={self.dropout:g}" if self.dropout else "")


def make_adapter(
    config: AdapterConfig, tasks: TaskRegistry, linear: Linear, name: str, seed: int
) -> LinearAdapter:
    """The adapter of a layer. ValueError without tasks where the router goes by task, and for sizes that
    do not fit."""
    if ROUTERS[config.router].needs_tasks and not len(tasks):
        raise ValueError(f"tasks: expected at least one ({config.method} goes by task), got none")
    weight = linear.weight
    return LinearAdapter(config, len(tasks), weight.shape, name, seed, weight.dtype)
