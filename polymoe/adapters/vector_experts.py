"""Experts that are vectors: they multiply what a linear layer makes, or what it is given. (IA)3, MoV."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from polymoe import tape
from polymoe.adapters.parts import Experts, Shapes, Site, expect
from polymoe.adapters.targets import is_named
from polymoe.batch import Batch, Routing

if TYPE_CHECKING:
    from polymoe.adapters.config import AdapterConfig


class VectorExperts(Experts):
    """S vectors: ``vectors`` [S, O], or [S, D] where the input is multiplied; group "gains".

        y = (x W^T + bias) * v                   v = sum_s w_s vectors[s], by block for heads
        y = (x * v) W^T + bias                   for the modules that ``feedforward_modules`` names

    They start as ones, so that the adapted model starts as the base wherever the weights w sum to 1; with
    ``init_weights`` False they start uniform from 1/2 to 3/2. As a product with a vector is linear in it,
    mixing "factors" (one vector for each group) and "outputs" are the same. Ranks and scales of pairs mean
    nothing here, and there is no low-rank branch whose input could be dropped.

    ``feedforward_modules``: as in PEFT, a pattern or endings of names; None is the base's own. The third
    vector of (IA)3 multiplies the hidden activation of the feed-forward, which is the input of its last
    layer. Liu et al. 2022, arXiv 2205.05638; mixed by token: Zadouri et al. 2023 (MoV), arXiv 2309.05444.
    """

    defaults: ClassVar[Mapping[str, str]] = {
        "target_modules": "ia3_target_modules",
        "feedforward_modules": "ia3_feedforward_modules",
    }
    fields = frozenset({"feedforward_modules"})
    formula = "S d"

    @staticmethod
    def check(config: AdapterConfig) -> None:
        """Mixed by factors or by outputs; no dropout."""
        why = f"the experts {config.experts!r}"
        expect(config, "mixing", ("factors", "outputs"), why)
        expect(config, "lora_dropout", 0, why)

    @staticmethod
    def shapes(config: AdapterConfig, n_experts: int, site: Site) -> Shapes:
        """The bank."""
        return {"vectors": (n_experts, site.n_in if _on_input(config, site) else site.n_out)}

    def __init__(self, config: AdapterConfig, n_experts: int, site: Site) -> None:
        super().__init__(config, n_experts, site)
        self.on_input = _on_input(config, site)
        shape = self.shapes(config, n_experts, site)["vectors"]
        if shape[1] % config.n_splits:
            raise ValueError(
                f"n_splits: expected a divisor of the {shape[1]} values of {site.name}, got {config.n_splits}"
            )
        self.vectors = site.uniform("vectors", shape, 0.0 if config.init_weights else 0.5, "gains")
        self.vectors.data += 1

    def mixed(self, routing: Routing) -> Any:
        """v of each group, example or token, [rows, d] or [rows, 1, d]."""
        if routing.weights is None:
            return self.vectors
        bank = tape.reshape(self.vectors, (self.n_experts, 1, self.vectors.shape[1]))
        if routing.axis != "token" and routing.ids is None:
            return tape.mix(routing.weights, bank)
        # Only the experts that a row names: a low-rank term whose x and A are 1.
        dtype = self.vectors.data.dtype
        x, A = np.ones((routing.weights.shape[0], 1), dtype), np.ones((1, 1, 1), dtype)
        return tape.moe(x, None, None, A, bank, routing.weights, routing.ids)

    def __call__(self, x: Any, module: Any, routing: Routing, batch: Batch) -> Any:
        """y [N, O]."""
        vectors, adapter_ids = self.mixed(routing), routing.adapter_ids
        if routing.axis == "example":
            adapter_ids = np.arange(batch.n_examples, dtype=np.int64)

        def multiply(a: Any) -> Any:
            return tape.multiply(a, vectors, adapter_ids, batch.cu_seqlens)

        if self.on_input:
            return tape.linear(multiply(x), module.weight, module.bias)
        return multiply(tape.linear(x, module.weight, module.bias))

    def extra_repr(self) -> str:
        """Sizes."""
        n, d = self.vectors.shape
        return f"{n} x {d}, on the {'input' if self.on_input else 'output'}"


def _on_input(config: AdapterConfig, site: Site) -> bool:
    return is_named(site.name, config.feedforward_modules)
