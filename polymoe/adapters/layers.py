"""The adapter of one site: router and experts put together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from polymoe import random, tape
from polymoe.adapters.config import AdapterConfig
from polymoe.adapters.experts import EXPERTS
from polymoe.adapters.parts import Router, Site
from polymoe.adapters.routers import ROUTERS
from polymoe.batch import Batch, Routing, TaskRegistry
from polymoe.nn import FeedForward, Linear, Module

SITES: dict[str, type[Linear] | type[FeedForward]] = {"linear": Linear, "feed_forward": FeedForward}


class AdapterLayer(Module):
    """What the frozen module makes of x, with experts: the router says which of them a group, an example or a
    token uses and how much, and the experts mix.

    ``router``: one that this layer shares with others; its own when None.
    """

    def __init__(self, config: AdapterConfig, site: Site, router: Router | None = None) -> None:
        self.name = site.name
        self.dropout = config.lora_dropout
        kind = ROUTERS[config.router]
        self.router = kind(config, site) if router is None else router
        self.experts = EXPERTS[config.experts](config, kind.n_experts(config, site), site)
        for _, parameter in self.experts.named_parameters():
            parameter.trainable = config.train_experts

    def __call__(self, x: Any, module: Any, batch: Batch) -> Any:
        """y [N, O] of x [N, D]."""
        routing = self._routing(x, batch)
        if not (self.training and self.dropout):
            return self.experts(x, module, routing, batch)
        # As in PEFT, what is dropped is the input of the low-rank branch alone, so the branch is a pass of
        # its own.
        dropped = tape.dropout(x, self._mask(x, batch))
        return tape.add(self.experts.frozen(x, module), self.experts(dropped, None, routing, batch))

    def _routing(self, x: Any, batch: Batch) -> Routing:
        def decide() -> Routing:
            routing = self.router(batch, x)
            if routing.aux is not None:
                tape.auxiliary(routing.aux)
            return replace(routing, cu_seqlens=batch.cu_seqlens) if routing.axis == "token" else routing

        if batch.routings is None:
            return decide()
        return batch.routings.decide(self.router.name, self.name, decide)

    def _mask(self, x: Any, batch: Batch) -> np.ndarray:
        """[N, D]: 0 with probability p, else 1/(1-p); a token's row depends on its example and place
        alone."""
        lengths = np.diff(batch.cu_seqlens)
        n_in, longest = x.shape[1], int(lengths.max(initial=0))
        u = random.uniform(batch.seed, "dropout", batch.step, self.name, batch.random_ids, longest * n_in)
        rows = u.reshape(len(lengths), longest, n_in)[np.arange(longest) < lengths[:, None]]
        return np.asarray((rows >= self.dropout) / (1 - self.dropout), tape.data_of(x).dtype)

    def extra_repr(self) -> str:
        """Dropout."""
        return f"lora_dropout={self.dropout:g}" if self.dropout else ""


def site_of(module: Any, name: str, n_tasks: int, seed: int = 0) -> Site:
    """What parts need to know of a linear layer or a feed-forward."""
    if isinstance(module, FeedForward):
        linears = [(part, getattr(module, part)) for part in module.projections]
        projections = tuple((part, m.in_features, m.out_features, m.bias is not None) for part, m in linears)
        n_in, n_out, dtype = projections[0][1], projections[-1][2], linears[0][1].weight.compute_dtype
        return Site(name, n_in, n_out, n_tasks, seed, dtype, projections, module)
    return Site(
        name,
        module.in_features,
        module.out_features,
        n_tasks,
        seed,
        module.weight.compute_dtype,
        module=module,
    )


def make_layer(
    config: AdapterConfig, tasks: TaskRegistry, site: Site, router: Router | None = None
) -> AdapterLayer:
    """The adapter of a site. ValueError without tasks where the router goes by task, and for sizes that do
    not fit."""
    if ROUTERS[config.router].needs_tasks and not len(tasks):
        raise ValueError(f"tasks: expected at least one ({config.method} goes by task), got none")
    return AdapterLayer(config, site, router)


def n_parameters(config: AdapterConfig, sites: list[Site]) -> int:
    """How many numbers are trained in layers of these sizes; no weights are made."""
    router, experts = ROUTERS[config.router], EXPERTS[config.experts]
    deciding = {config.router_name(site.name): site for site in reversed(sites)}.values()
    shapes = [shape for site in deciding for shape in router.shapes(config, site).values()]
    for site in sites if config.train_experts else ():
        shapes += experts.shapes(config, router.n_experts(config, site), site).values()
    return sum(int(np.prod(shape)) for shape in shapes)


def formula(config: AdapterConfig) -> str:
    """The trainable parameters of a layer as people write them."""
    router, experts = ROUTERS[config.router], EXPERTS[config.experts]
    count = "" if router.count == "1" else f"{router.count} "
    gate = experts.gate_formula if config.mixing == "gated" else "0"
    terms = [experts.formula.replace("S ", count) if config.train_experts else "0", gate, router.formula]
    heads = " order" if config.mixing == "leaves" else " Q" if config.n_heads > 1 else ""
    terms = [term.replace(" Q", heads) for term in terms if term != "0"]
    if router.formula != "0" and config.router_granularity != "linear":
        terms[-1] = f"({terms[-1]} a {config.router_granularity})"
    return " + ".join(terms) or "0"
