"""Experts: what is mixed.

Experts are called with the weights of a :class:`~polymoe.batch.Routing` and give ``(lora_A, lora_B,
weights)``, the arguments of :func:`polymoe.functional.linear` for mixing "factors"; those whose factors are
made first return the made ones and None.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from polymoe.adapters import initial
from polymoe.adapters.config import AdapterConfig
from polymoe.nn import Module, Parameter


class LoraExperts(Module):
    """S pairs: ``lora_A`` [S, r, D], ``lora_B`` [S, r, O], group "skills".

    A starts uniform within sqrt(Q/D) ("peft": each block of D/Q inputs as torch starts a linear layer of
    that width) or 1/sqrt(3D) ("mttl"), B as zeros; with ``init_weights`` False B is uniform within
    1/sqrt(r). Raises ValueError when the heads do not divide D or O.
    """

    def __init__(
        self, config: AdapterConfig, n_experts: int, shape: tuple[int, int], name: str, seed: int, dtype: Any
    ) -> None:
        n_out, n_in = shape
        heads, r = config.n_splits, config.rank(name)
        for extent, letter in ((n_in, "in_features"), (n_out, "out_features")):
            if extent % heads:
                raise ValueError(f"n_splits: expected a divisor of {letter} {extent} of {name}, got {heads}")
        bound = np.sqrt(heads / n_in) if config.init == "peft" else 1 / np.sqrt(3 * n_in)
        self.lora_A = Parameter(
            initial.uniform(seed, f"{name}.lora_A", (n_experts, r, n_in), bound, dtype), "skills"
        )
        bound = 0.0 if config.init_weights else 1 / np.sqrt(r)
        self.lora_B = Parameter(
            initial.uniform(seed, f"{name}.lora_B", (n_experts, r, n_out), bound, dtype), "skills"
        )

    def __call__(self, weights: Any) -> tuple[Any, Any, Any]:
        """The bank; mixing is left to the kernel."""
        return self.lora_A, self.lora_B, weights

    def extra_repr(self) -> str:
        """Sizes."""
        n_experts, r, n_in = self.lora_A.shape
        return f"{n_experts} x rank {r}, {n_in} -> {self.lora_B.shape[2]}"
