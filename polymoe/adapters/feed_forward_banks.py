"""Banks of feed-forwards, the experts of a whole feed-forward: ``bank(x, module, choice) -> y``.

E_i(x) = the feed-forward with weights of its own, a copy                         FeedForwardCopies
       = the feed-forward with a LoRA pair on each of its projections             FeedForwardLora
       = B_i relu(A_i x + a_i) + b_i, a bottleneck beside the frozen feed-forward         Bottlenecks
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from polymoe import tape
from polymoe.adapters.parts import Shapes, Site
from polymoe.nn import Module
from polymoe.parameters import Parameter

if TYPE_CHECKING:
    from polymoe.adapters.config import AdapterConfig


class Choice(NamedTuple):
    """Which experts [G, K] each group uses and how much [G, K] (None: their outputs stay apart), the group
    [B] of each example, and where the examples start, [B + 1]."""

    ids: np.ndarray
    weights: Any
    adapter_ids: np.ndarray
    cu_seqlens: np.ndarray


class Bank(Module):
    """n experts; ``beside``: the frozen feed-forward is added to what they make. Made from
    ``(config, n, site, name)``, the name keying the initial values."""

    beside: ClassVar[bool] = False

    def __init__(self, config: AdapterConfig, n: int, site: Site, name: str) -> None:
        self.n_experts = n

    @staticmethod
    def shapes(config: AdapterConfig, n: int, site: Site) -> Shapes:
        """Shapes of its parameters."""
        raise NotImplementedError

    def __call__(self, x: Any, module: Any, choice: Choice) -> Any:
        """The weighted sum [N, D], or [N, K, D] apart, of x [N, D]."""
        raise NotImplementedError


class FeedForwardCopies(Bank):
    """Whole trained copies: ``up_weight`` [n, F, D], ``up_bias`` [n, F], ``down_weight`` [n, D, F] ..., as
    the projections of the feed-forward are called. Each starts as the frozen one. Group "skills"."""

    @staticmethod
    def shapes(config: AdapterConfig, n: int, site: Site) -> Shapes:
        """A weight and perhaps a bias for each projection."""
        shapes: Shapes = {}
        for name, n_in, n_out, bias in site.projections:
            shapes[f"{name}_weight"] = (n, n_out, n_in)
            if bias:
                shapes[f"{name}_bias"] = (n, n_out)
        return shapes

    def __init__(self, config: AdapterConfig, n: int, site: Site, name: str) -> None:
        super().__init__(config, n, site, name)
        for projection, _, _, bias in site.projections:
            linear = getattr(site.module, projection)
            weight = np.repeat(linear.weight.unpack()[None], n, axis=0)
            weight = weight.astype(linear.weight.compute_dtype, copy=False)
            setattr(self, f"{projection}_weight", Parameter(weight, "skills"))
            if bias:
                setattr(
                    self, f"{projection}_bias", Parameter(np.repeat(linear.bias[None], n, axis=0), "skills")
                )

    def __call__(self, x: Any, module: Any, choice: Choice) -> Any:
        """Each expert is computed once for each token that uses it."""

        def project(name: str, h: Any) -> Any:
            weights = choice.weights if name == module.projections[-1] else None
            weight, bias = getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias", None)
            return tape.expert_dense(h, weight, bias, choice.ids, weights, *choice[2:])

        return module.compute(x, project)


class FeedForwardLora(Bank):
    """Low-rank changes: ``up_lora_A`` [n, r, D], ``up_lora_B`` [n, r, F], ``down_lora_A`` ..., scaled by
    lora_alpha / r. A starts uniform within 1/sqrt(its width), B as zeros. Group "skills"."""

    @staticmethod
    def shapes(config: AdapterConfig, n: int, site: Site) -> Shapes:
        """A pair for each projection."""
        r, shapes = config.rank(site.name), Shapes()
        for name, n_in, n_out, _ in site.projections:
            shapes[f"{name}_lora_A"], shapes[f"{name}_lora_B"] = (n, r, n_in), (n, r, n_out)
        return shapes

    def __init__(self, config: AdapterConfig, n: int, site: Site, name: str) -> None:
        super().__init__(config, n, site, name)
        self.scale = config.scale(site.name)
        r = config.rank(site.name)
        for part, shape in self.shapes(config, n, site).items():
            bound = (
                1 / np.sqrt(shape[2])
                if part.endswith("A")
                else 0.0
                if config.init_weights
                else 1 / np.sqrt(r)
            )
            setattr(self, part, site.uniform(f"{name}.{part}", shape, bound, "skills"))

    def __call__(self, x: Any, module: Any, choice: Choice) -> Any:
        """Every example once for each of its K experts, one after another, as if it were K examples."""
        ids, weights, adapter_ids, cu_seqlens = choice
        n, k = int(cu_seqlens[-1]), ids.shape[1]
        copies = np.concatenate([cu_seqlens[:-1] + i * n for i in range(k)] + [[k * n]]).astype(np.int64)
        experts = np.ascontiguousarray(ids[adapter_ids].T).ravel()  # [K * B]

        def project(name: str, h: Any) -> Any:
            linear, A, B = (
                getattr(module, name),
                getattr(self, f"{name}_lora_A"),
                getattr(self, f"{name}_lora_B"),
            )
            return tape.linear(h, linear.weight, linear.bias, A, B, None, experts, copies, self.scale)

        y = module.compute(tape.embedding(np.tile(np.arange(n), k), x), project)
        width = y.shape[1]
        if weights is None:
            order = (np.arange(k) * n + np.arange(n)[:, None]).ravel()
            return tape.reshape(tape.embedding(order, y), (n, k, width))
        dtype = tape.data_of(y).dtype
        gains = tape.reshape(weights, (ids.size, 1))  # [G * K, 1]
        gains = tape.dense(gains, np.ones((width, 1), dtype), None)
        rows = (adapter_ids * k + np.arange(k)[:, None]).ravel()
        y = tape.reshape(tape.multiply(y, gains, rows, copies), (k, n, width))
        return tape.reshape(tape.mix(np.ones((1, 1, k), dtype), y), (n, width))


class Bottlenecks(Bank):
    """Adapters of r hidden units beside the frozen feed-forward: ``down_weight`` [n, r, D], ``down_bias``,
    ``up_weight`` [n, D, r], ``up_bias``; down starts uniform within 1/sqrt(D), the rest as zeros. Group
    "skills". Houlsby et al. 2019 (arXiv 1902.00751), in parallel."""

    beside = True

    @staticmethod
    def shapes(config: AdapterConfig, n: int, site: Site) -> Shapes:
        """Down to r, up again."""
        r = config.rank(site.name)
        down: Shapes = {"down_weight": (n, r, site.n_in), "down_bias": (n, r)}
        return down | {"up_weight": (n, site.n_out, r), "up_bias": (n, site.n_out)}

    def __init__(self, config: AdapterConfig, n: int, site: Site, name: str) -> None:
        super().__init__(config, n, site, name)
        shapes, r = self.shapes(config, n, site), config.rank(site.name)
        start = 0.0 if config.init_weights else 1 / np.sqrt(r)
        self.down_weight = site.uniform(
            f"{name}.down_weight", shapes["down_weight"], 1 / np.sqrt(site.n_in), "skills"
        )
        self.down_bias = site.full(shapes["down_bias"], 0, "skills")
        self.up_weight = site.uniform(f"{name}.up_weight", shapes["up_weight"], start, "skills")
        self.up_bias = site.full(shapes["up_bias"], 0, "skills")

    def __call__(self, x: Any, module: Any, choice: Choice) -> Any:
        """Without the frozen feed-forward."""
        h = tape.relu(tape.expert_dense(x, self.down_weight, self.down_bias, choice.ids, None, *choice[2:]))
        return tape.expert_dense(h, self.up_weight, self.up_bias, *choice)
