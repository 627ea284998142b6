"""Routers that read each token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from polymoe import tape
from polymoe.adapters.parts import Router, Shapes, Site, expect
from polymoe.batch import Batch, Routing

if TYPE_CHECKING:
    from polymoe.adapters.config import AdapterConfig


class TokenSoftmax(Router):
    """A softmax for each token, over all experts or over the best.

        p = softmax(x W^T)                      over S experts
        w = p, or the ``top_k`` largest of p divided by their sum (equal ones: the lower index first)

    ``weight`` [S, D], group "content", starts uniform within 1/sqrt(D) (a choice; MoLoRA's is normal, 0.02).
    ``balance_loss``: coefficient of :func:`polymoe.functional.balance_loss`, an auxiliary loss in training,
    summed over layers; it counts choices, so it needs ``top_k``. ``stop_router_gradient``: x gets no gradient
    from here. Dense: Zadouri et al. 2023 (MoLoRA); best: Gao et al. 2024 (MoLA), Zhao et al. 2024 (MoSLD).
    """

    axis = "token"
    fields = frozenset({"stop_router_gradient", "top_k", "balance_loss"})
    formula = "S D"

    @staticmethod
    def check(config: AdapterConfig) -> None:
        """Outputs are mixed, k is at most the number of experts of every layer."""
        expect(
            config, "mixing", "outputs", f"the router {config.router!r}: a pair for every token is no saving"
        )
        check_top_k(config)
        if config.top_k is None and config.balance_loss:
            raise ValueError(f"balance_loss: expected 0 (without top_k), got {config.balance_loss}")

    @staticmethod
    def shapes(config: AdapterConfig, site: Site) -> Shapes:
        """A row for each expert."""
        return {"weight": (config.skills(site.name), site.n_in)}

    def __init__(self, config: AdapterConfig, site: Site) -> None:
        super().__init__(config, site)
        self.top_k, self.balance_loss = config.top_k, config.balance_loss
        self.stop_gradient = config.stop_router_gradient
        shape = self.shapes(config, site)["weight"]
        self.weight = site.uniform("router.weight", shape, 1 / np.sqrt(site.n_in), "content")

    def __call__(self, batch: Batch, x: Any) -> Routing:
        """Weights [N, S], or [N, k] beside their ids."""
        logits = tape.dense(tape.data_of(x) if self.stop_gradient else x, self.weight, None)
        if self.top_k is None:
            return Routing("token", tape.softmax_router(logits))
        weights, ids = tape.topk_router(logits, self.top_k)
        aux = None
        if self.training and self.balance_loss:
            coefficient = np.asarray(self.balance_loss, self.weight.data.dtype)
            aux = tape.multiply(tape.balance_loss(logits, ids), coefficient)
        return Routing("token", weights, ids, aux=aux)

    def extra_repr(self) -> str:
        """Sizes."""
        return f"{len(self.weight.data)} skills" + (f", top_k={self.top_k}" if self.top_k else "")


def check_top_k(config: AdapterConfig) -> None:
    """ValueError for a k above the number of skills of a layer."""
    fewest = min([config.n_skills, *config.n_skills_pattern.values()])
    if config.top_k is not None and config.top_k > fewest:
        raise ValueError(f"top_k: expected 1 to {fewest} (the fewest skills of a layer), got {config.top_k}")
