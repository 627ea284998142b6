"""The adapter of one linear layer: router, experts and mixing put together."""

from __future__ import annotations

from typing import Any

import numpy as np

from polymoe import random, tape
from polymoe.adapters.config import AdapterConfig
from polymoe.adapters.experts import EXPERTS
from polymoe.adapters.parts import Site
from polymoe.adapters.routers import ROUTERS
from polymoe.batch import Batch, Routing, TaskRegistry
from polymoe.functional import PackedWeight
from polymoe.nn import Linear, Module


class LinearAdapter(Module):
    """y = x W^T + bias + scale * (low-rank term), where the router says which experts a group, an example or
    a token uses: their factors mixed, ``(x A_g^T) B_g``, or their outputs, ``sum_s w_s (x A_s^T) B_s``.
    """

    def __init__(self, config: AdapterConfig, site: Site) -> None:
        self.name = site.name
        self.scale = config.scale(site.name)
        self.dropout = config.lora_dropout
        self.mixing = config.mixing
        router = ROUTERS[config.router]
        self.router = router(config, site)
        self.experts = EXPERTS[config.experts](config, router.n_experts(config, site), site)

    def __call__(self, x: Any, weight: PackedWeight, bias: np.ndarray | None, batch: Batch) -> Any:
        """y [N, O] of x [N, D]."""
        routing = self.router(batch, x)
        if routing.aux is not None:
            tape.auxiliary(routing.aux)
        if not (self.training and self.dropout):
            return self._mix(x, weight, bias, routing, batch)
        # As in PEFT, what is dropped is the input of the low-rank branch alone, so the branch is a pass of
        # its own.
        dropped = tape.dropout(x, self._mask(x, batch))
        return tape.add(tape.linear(x, weight, bias), self._mix(dropped, None, None, routing, batch))

    def _mix(self, x: Any, weight: PackedWeight | None, bias: Any, routing: Routing, batch: Batch) -> Any:
        """The base's product and the term; the term alone without a weight."""
        lora_A, lora_B, weights = self.experts(routing.weights, batch)
        if routing.axis == "token":
            return tape.moe(x, weight, bias, lora_A, lora_B, weights, routing.ids, self.scale)
        adapter_ids = routing.adapter_ids
        if routing.axis == "example":
            adapter_ids = np.arange(batch.n_examples, dtype=np.int64)
        return tape.linear(
            x, weight, bias, lora_A, lora_B, weights, adapter_ids, batch.cu_seqlens, self.scale,
            mixing="outputs" if self.mixing == "outputs" else "factors", ids=routing.ids,
        )  # fmt: skip

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
    n_out, n_in = linear.weight.shape
    return LinearAdapter(config, Site(name, n_in, n_out, len(tasks), seed, linear.weight.dtype))


def n_parameters(config: AdapterConfig, sites: list[Site]) -> int:
    """How many numbers are trained in layers of these sizes; no weights are made."""
    router, experts = ROUTERS[config.router], EXPERTS[config.experts]
    total = 0
    for site in sites:
        shapes = [*router.shapes(config, site).values()]
        shapes += experts.shapes(config, router.n_experts(config, site), site).values()
        total += sum(int(np.prod(shape)) for shape in shapes)
    return total


def formula(config: AdapterConfig) -> str:
    """The trainable parameters of a layer as people write them."""
    router, experts = ROUTERS[config.router], EXPERTS[config.experts]
    count = "" if router.count == "1" else f"{router.count} "
    terms = [experts.formula.replace("S ", count), router.formula]
    heads = " order" if config.mixing == "leaves" else " Q" if config.n_heads > 1 else ""
    terms = [term.replace(" Q", heads) for term in terms]
    return " + ".join(term for term in terms if term != "0")
