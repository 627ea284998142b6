"""Experts that are pairs of factors: LoRA's, with an A of their own or a common one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from polymoe import random, tape
from polymoe.adapters.parts import Experts, Shapes, Site, expect
from polymoe.batch import Batch, Routing
from polymoe.functional import PackedFactor

if TYPE_CHECKING:
    from polymoe.adapters.config import AdapterConfig


class LowRankExperts(Experts):
    """A frozen product and a low-rank term; a subclass has the :meth:`factors`.

    mixing "factors", "leaves":  y = x W^T + bias + scale (x A_g^T) B_g,  A_g and B_g the mixed factors
    mixing "outputs":            y = x W^T + bias + scale sum_s w_s (x A_s^T) B_s
    """

    usual_targets = "all-linear"

    def __init__(self, config: AdapterConfig, n_experts: int, site: Site) -> None:
        super().__init__(config, n_experts, site)
        self.scale = config.scale(site.name)
        self.mixing = config.mixing

    def factors(self, weights: Any, batch: Batch) -> tuple[Any, Any, Any]:
        """(lora_A, lora_B, weights) as the kernels take them; what is mixed already has the weights None."""
        raise NotImplementedError

    def __call__(self, x: Any, module: Any, routing: Routing, batch: Batch) -> Any:
        """y [N, O]: one kernel for the frozen product and the term."""
        weight, bias = (None, None) if module is None else (module.weight, module.bias)
        routings = batch.routings
        if routings is not None and routings.stand and routing.axis == "group" and self.mixing != "outputs":
            lora_A, lora_B = routings.once(self.name, self._mixed, routing, batch)
            ids, offsets = routing.adapter_ids, batch.cu_seqlens
            return tape.linear(x, weight, bias, lora_A, lora_B, None, ids, offsets)
        lora_A, lora_B, weights = self.factors(routing.weights, batch)
        if routing.axis == "token":
            return tape.moe(x, weight, bias, lora_A, lora_B, weights, routing.ids, self.scale)
        adapter_ids = routing.adapter_ids
        if routing.axis == "example":
            adapter_ids = np.arange(batch.n_examples, dtype=np.int64)
        return tape.linear(
            x, weight, bias, lora_A, lora_B, weights, adapter_ids, batch.cu_seqlens, self.scale,
            mixing="outputs" if self.mixing == "outputs" else "factors", ids=routing.ids,
        )  # fmt: skip

    def _mixed(self, routing: Routing, batch: Batch) -> tuple[Any, Any]:
        """The pairs of all groups, A scaled and packed: where texts are written, once for all tokens."""
        lora_A, lora_B, weights = self.factors(routing.weights, batch)
        if weights is not None:
            lora_A, lora_B = tape.mix(weights, lora_A), tape.mix(weights, lora_B)
        scaled = tape.data_of(lora_A)
        return PackedFactor(scaled * scaled.dtype.type(self.scale)), tape.data_of(lora_B)


class LoraExperts(LowRankExperts):
    """S pairs: ``lora_A`` [S, r, D], ``lora_B`` [S, r, O], group "skills".

    A starts uniform within sqrt(Q/D) ("peft": each block of D/Q inputs as torch starts a linear layer of
    that width) or 1/sqrt(3D) ("mttl"), B as zeros; with ``init_weights`` False B is uniform within
    1/sqrt(r). Raises ValueError when the heads do not divide D or O.

    With the router "constant" they may have PEFT's biases, [1, 1, O] each, group "gains": ``bias``
    "lora_only" trains ``module_bias``, which takes the place of the module's; ``lora_bias`` adds
    ``scale * lora_bias``, from 0 on.
    """

    fields = frozenset({"bias", "lora_bias"})
    formula = "S r (D + O)"

    @staticmethod
    def check(config: AdapterConfig) -> None:
        """Mixed by factors or by outputs; biases only of the one pair of LoRA."""
        expect(config, "mixing", ("factors", "outputs"), f"the experts {config.experts!r}")
        expect(config, "init", ("peft", "mttl"), f"the experts {config.experts!r}")
        if config.router != "constant":
            expect(config, "bias", "none", f"the router {config.router!r}")
            expect(config, "lora_bias", False, f"the router {config.router!r}")

    @staticmethod
    def shapes(config: AdapterConfig, n_experts: int, site: Site) -> Shapes:
        """Both banks, and biases."""
        r, bias = config.rank(site.name), (1, 1, site.n_out)
        replaced = config.bias == "lora_only" and (site.module is None or site.module.bias is not None)
        return {
            "lora_A": (n_experts, r, site.n_in),
            "lora_B": (n_experts, r, site.n_out),
            **({"module_bias": bias} if replaced else {}),
            **({"lora_bias": bias} if config.lora_bias else {}),
        }

    def __init__(self, config: AdapterConfig, n_experts: int, site: Site) -> None:
        super().__init__(config, n_experts, site)
        heads, r = config.n_splits, config.rank(site.name)
        for extent, letter in ((site.n_in, "in_features"), (site.n_out, "out_features")):
            if extent % heads:
                raise ValueError(
                    f"n_splits: expected a divisor of {letter} {extent} of {site.name}, got {heads}"
                )
        shapes = self.shapes(config, n_experts, site)
        bound = np.sqrt(heads / site.n_in) if config.init == "peft" else 1 / np.sqrt(3 * site.n_in)
        self.lora_A = site.uniform("lora_A", shapes["lora_A"], bound, "skills")
        bound = 0.0 if config.init_weights else 1 / np.sqrt(r)
        self.lora_B = site.uniform("lora_B", shapes["lora_B"], bound, "skills")
        self.module_bias, self.lora_bias = (
            site.full(shapes[part], 0.0, "gains") if part in shapes else None
            for part in ("module_bias", "lora_bias")
        )
        if self.module_bias is not None and site.module is not None:
            self.module_bias.data[...] = site.module.bias

    def __call__(self, x: Any, module: Any, routing: Routing, batch: Batch) -> Any:
        """y [N, O]."""
        if module is not None and self.module_bias is not None:
            term = super().__call__(x, None, routing, batch)
            y = tape.add(self.frozen(x, module), term)
        else:
            y = super().__call__(x, module, routing, batch)
        return y if self.lora_bias is None else tape.add(y, _constant(x, self.lora_bias, self.scale))

    def frozen(self, x: Any, module: Any) -> Any:
        """With the bias that was learnt."""
        if self.module_bias is None:
            return super().frozen(x, module)
        return tape.add(tape.linear(x, module.weight, None), _constant(x, self.module_bias))

    def factors(self, weights: Any, batch: Batch) -> tuple[Any, Any, Any]:
        """The banks; mixing is left to the kernel."""
        return self.lora_A, self.lora_B, weights

    def extra_repr(self) -> str:
        """Sizes."""
        n_experts, r, n_out = self.lora_B.shape
        return f"{n_experts} x rank {r}, {self.lora_A.shape[2]} -> {n_out}, scale={self.scale:g}"


def _constant(x: Any, bias: Any, scale: float = 1.0) -> Any:
    """``scale * bias`` for each row of x: a low-rank term whose input and A are 1."""
    one = np.ones((x.shape[0], 1), tape.data_of(bias).dtype)
    return tape.linear(one, None, None, one[:1, None], bias, scale=scale)


class SharedLoraExperts(LoraExperts):
    """One A that all experts share, and S up-projections: ``lora_A`` [1, r, D], ``lora_B`` [S, r, O].

    ``lora_A_dropout`` p: in training an entry of A is 0 with probability p, else divided by 1 - p, drawn once
    a step for all tokens and experts (MoSLD: A learns from every token, each B from its share only).
    Tian et al. 2024 (HydraLoRA, arXiv 2404.19245), Zhao et al. 2024 (MoSLD, arXiv 2412.08946).
    """

    fields = frozenset({"lora_A_dropout"})
    formula = "r D + S r O"

    @staticmethod
    def check(config: AdapterConfig) -> None:
        """Outputs by token: where factors are mixed, a shared A is just A."""
        expect(config, "mixing", "outputs", f"the experts {config.experts!r}")
        expect(config, "init", ("peft", "mttl"), f"the experts {config.experts!r}")
        expect(config, "router", "token_softmax", f"the experts {config.experts!r}")

    @staticmethod
    def shapes(config: AdapterConfig, n_experts: int, site: Site) -> Shapes:
        """One A, a bank of B."""
        r = config.rank(site.name)
        return {"lora_A": (1, r, site.n_in), "lora_B": (n_experts, r, site.n_out)}

    def __init__(self, config: AdapterConfig, n_experts: int, site: Site) -> None:
        super().__init__(config, n_experts, site)
        self.A_dropout = config.lora_A_dropout

    def factors(self, weights: Any, batch: Batch) -> tuple[Any, Any, Any]:
        """A, masked in training, and the bank of B."""
        if not (self.training and self.A_dropout):
            return self.lora_A, self.lora_B, weights
        shape, dtype = self.lora_A.shape, self.lora_A.data.dtype
        once, n = np.zeros(1, np.int64), int(np.prod(shape))
        u = random.uniform(batch.seed, "lora_A_dropout", batch.step, self.name, once, n)
        mask = np.asarray((u >= self.A_dropout) / (1 - self.A_dropout), dtype)
        return tape.dropout(self.lora_A, mask.reshape(shape)), self.lora_B, weights
