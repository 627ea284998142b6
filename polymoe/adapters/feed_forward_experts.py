"""Experts of a whole feed-forward: ALTER's mixture of task adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from polymoe import tape
from polymoe.adapters.feed_forward_banks import Bank, Bottlenecks, Choice, FeedForwardCopies, FeedForwardLora
from polymoe.adapters.parts import Experts, Shapes, Site, expect
from polymoe.batch import Batch, Routing

if TYPE_CHECKING:
    from polymoe.adapters.config import AdapterConfig


class FeedForwardExperts(Experts):
    """S feed-forwards in place of one, mixed by their outputs; ``bank`` says what they are.

        mixing "outputs":  y = sum_i w_i E_i(x)                                           ALTER's first stage
        mixing "gated":    y = v_0 sum_i w_i E_i(x) + sum_m v_m S_m(x)                            its second
                           v = softmax(W_2 relu(W_1 [sum_i w_i E_i(x_0), S_1(x_0), ...]))    an example's own

    ``n_shared`` feed-forwards S_m belong to all; x_0 is the first token of the example, which marks it
    (BERT's [CLS]), and v is kept for later tokens of a text that is being written. ``own`` and ``shared``
    are the banks, ``gate_in`` W_1 [D, (1 + n_shared) D] and ``gate_out`` W_2 [1 + n_shared, D] group
    "content". With copies and weights that sum to 1 the layer starts exactly as the frozen one. A bank that
    stands beside the frozen feed-forward has it added once. Published: copies; the other banks are for those
    who want fewer parameters. The paper trains the whole model in its first stage; here the base is frozen,
    and only experts and weights are trained. Xie et al. 2023, arXiv 2309.11042.
    """

    site = "feed_forward"
    fields = frozenset({"n_shared"})
    bank: ClassVar[type[Bank]]

    @staticmethod
    def check(config: AdapterConfig) -> None:
        """One head; no dropout; shared experts only where a gate can weigh them."""
        why = f"the experts {config.experts!r}"
        expect(config, "mixing", ("outputs", "gated"), why)
        expect(config, "n_splits", 1, why)
        expect(config, "lora_dropout", 0, why)
        expect(config, "init", "peft", why)
        if config.mixing == "outputs":
            expect(config, "n_shared", 0, "the mixing 'outputs'")
        else:
            expect(config, "router", ("task_types", *_EXAMPLE_ROUTERS), "a gate for each example")
            if config.n_shared < 1:
                raise ValueError(f"n_shared: expected at least 1 (the mixing 'gated'), got {config.n_shared}")

    @classmethod
    def shapes(cls, config: AdapterConfig, n_experts: int, site: Site) -> Shapes:
        """Of the banks and the gate."""
        found = {f"own.{name}": shape for name, shape in cls.bank.shapes(config, n_experts, site).items()}
        if config.mixing == "gated":
            shared = cls.bank.shapes(config, config.n_shared, site)
            found |= {f"shared.{name}": shape for name, shape in shared.items()}
            stacked = 1 + config.n_shared
            found |= {"gate_in": (site.n_out, stacked * site.n_out), "gate_out": (stacked, site.n_out)}
        return found

    def __init__(self, config: AdapterConfig, n_experts: int, site: Site) -> None:
        super().__init__(config, n_experts, site)
        self.n_shared = config.n_shared
        self.own = self.bank(config, n_experts, site, "own")
        if config.n_shared:
            shapes = self.shapes(config, n_experts, site)
            self.shared = self.bank(config, config.n_shared, site, "shared")
            inside, stacked = shapes["gate_in"], shapes["gate_out"]
            self.gate_in = site.uniform("gate_in", inside, 1 / np.sqrt(inside[1]), "content")
            self.gate_out = site.uniform("gate_out", stacked, 1 / np.sqrt(stacked[1]), "content")

    def __call__(self, x: Any, module: Any, routing: Routing, batch: Batch) -> Any:
        """y [N, D]."""
        choice = _choice(routing, batch, self.n_experts, tape.data_of(x).dtype)
        if self.n_shared and batch.n_tokens:
            y = self._gated(x, module, choice, batch)
        else:
            y = self.own(x, module, choice)
        if self.own.beside and module is not None:
            y = tape.add(_frozen(x, module, batch), y)
        return y

    def _gated(self, x: Any, module: Any, choice: Choice, batch: Batch) -> Any:
        n, k, m = batch.n_examples, choice.ids.shape[1], self.n_shared
        dtype, each = tape.data_of(x).dtype, np.arange(n, dtype=np.int64)
        everybody = np.tile(np.arange(m), (n, 1))

        def decide() -> Routing:
            first = tape.embedding(np.minimum(batch.cu_seqlens[:-1], batch.n_tokens - 1), x)  # [B, D]
            ones = np.arange(n + 1, dtype=np.int64)
            own = self.own(first, module, choice._replace(cu_seqlens=ones))
            shared = self.shared(first, module, Choice(everybody, None, each, ones))
            width = own.shape[1]
            stacked = tape.concat(tape.reshape(own, (n, 1, width)), tape.reshape(shared, (n, m * width)))
            stacked = tape.reshape(stacked, (n, (1 + m) * width))
            h = tape.relu(tape.dense(stacked, self.gate_in, None))
            return Routing("example", tape.softmax_router(tape.dense(h, self.gate_out, None)))

        name = f"{self.name}.gate"
        gate = decide() if batch.routings is None else batch.routings.decide(name, self.name, decide)
        v = gate.weights
        if gate.adapter_ids is not None:  # decided on the prompts
            v = tape.embedding(gate.adapter_ids, v)
        columns = np.eye(1 + m, dtype=dtype)
        own = tape.multiply(
            tape.embedding(choice.adapter_ids, choice.weights),
            tape.dense(v, np.repeat(columns[:1], k, 0), None),
        )
        y = self.own(x, module, Choice(choice.ids[choice.adapter_ids], own, each, batch.cu_seqlens))
        shared = tape.dense(v, columns[1:].copy(), None)
        return tape.add(y, self.shared(x, module, Choice(everybody, shared, each, batch.cu_seqlens)))

    def extra_repr(self) -> str:
        """Sizes."""
        return f"{self.n_experts} experts" + (f", {self.n_shared} shared" if self.n_shared else "")


class CopyExperts(FeedForwardExperts):
    """Trained copies of the frozen feed-forward (:class:`FeedForwardCopies`)."""

    bank = FeedForwardCopies
    formula = "S (2 D F + D + F)"
    gate_formula = "M (2 D F + D + F) + (M + 1) (D D + D)"


class LoraFeedForwardExperts(FeedForwardExperts):
    """The frozen feed-forward with a LoRA pair on each projection (:class:`FeedForwardLora`)."""

    bank = FeedForwardLora
    formula = "S 2 r (D + F)"
    gate_formula = "M 2 r (D + F) + (M + 1) (D D + D)"


class BottleneckExperts(FeedForwardExperts):
    """Bottlenecks beside the frozen feed-forward (:class:`Bottlenecks`)."""

    bank = Bottlenecks
    formula = "S (2 D r + D + r)"
    gate_formula = "M (2 D r + D + r) + (M + 1) (D D + D)"


_EXAMPLE_ROUTERS = ("content_softmax", "latent_tasks")


def _choice(routing: Routing, batch: Batch, n_experts: int, dtype: Any) -> Choice:
    """A routing by group, example or token as experts and weights [G, K] of groups of tokens."""
    adapter_ids, cu_seqlens = routing.adapter_ids, batch.cu_seqlens
    if routing.axis == "example":
        adapter_ids = np.arange(batch.n_examples, dtype=np.int64)
    elif routing.axis == "token":  # every token for itself
        adapter_ids = np.arange(batch.n_tokens, dtype=np.int64)
        cu_seqlens = np.arange(batch.n_tokens + 1, dtype=np.int64)
    elif adapter_ids is None:
        adapter_ids = np.zeros(batch.n_examples, np.int64)
    weights, ids = routing.weights, routing.ids
    if weights is None:  # group g is expert g
        return Choice(np.arange(n_experts)[:, None], np.ones((n_experts, 1), dtype), adapter_ids, cu_seqlens)
    if ids is None:
        groups = weights.shape[0]
        ids = np.tile(np.arange(n_experts), (groups, 1))
        weights = tape.reshape(weights, (groups, n_experts))
    return Choice(ids, weights, adapter_ids, cu_seqlens)


def _frozen(x: Any, module: Any, batch: Batch) -> Any:
    return module.compute(x, lambda name, h: getattr(module, name)(h, batch))
