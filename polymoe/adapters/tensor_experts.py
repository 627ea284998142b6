"""Experts whose factors are Kronecker products of small leaves: TLoRA, TensorPoly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from polymoe import tape
from polymoe.adapters.low_rank import LowRankExperts
from polymoe.adapters.parts import Shapes, Site, expect
from polymoe.batch import Batch
from polymoe.functional import leaf_size

if TYPE_CHECKING:
    from polymoe.adapters.config import AdapterConfig

ORDERS = (2, 4, 8)


class TensorExperts(LowRankExperts):
    """S components, each row of a factor the Kronecker product of ``order`` leaves with LayerNorm between
    (:func:`polymoe.functional.tensor_product`).

        mixing "factors":  A = sum_s w_s product(leaves of s)               TensorPoly-I, TLoRA (S = 1)
        mixing "leaves":   A = product of leaves o = sum_s w[o, s] (leaf o of s)      TensorPoly-II

    ``leaves_A`` [S, r, order * m_A] and ``leaves_B`` [S, r, order * m_B] with ``m = ceil(d ** (1 / order))``,
    leaves side by side, group "skills"; with mixing "leaves" a router gives a row of weights for each order.
    No leaf is zero, so that the adapted model does not start exactly as the base; ``zero_start`` makes the
    first leaf of B zero and it does (our option; the others get no gradient on the first step). ``init``:
    bounds of the leaves as published, 1/sqrt(3 D) for A and B alike ("mttl" with mixing "factors"), Xavier's
    ("mttl" with "leaves"), 1/(sqrt(3) d^(1/order)) ("tlora"). LayerNorm's scale and shift are not trained, as
    in the authors' best configurations. Su et al. 2024, arXiv 2405.16671.
    """

    fields = frozenset({"order", "zero_start"})
    formula = "order S r (m_D + m_O)"

    @staticmethod
    def check(config: AdapterConfig) -> None:
        """One head (each order is one where leaves are mixed); orders that there are."""
        why = f"the experts {config.experts!r}"
        expect(config, "mixing", ("factors", "leaves"), why)
        expect(config, "n_splits", 1, why)
        expect(config, "order", ORDERS, why)
        expect(config, "init", ("mttl", "tlora"), why)
        expect(config, "init_weights", True, f"{why} have zero_start instead")

    @staticmethod
    def shapes(config: AdapterConfig, n_experts: int, site: Site) -> Shapes:
        """Leaves side by side. ValueError for a layer too narrow for the order."""
        shapes: Shapes = {}
        for part, d, letter in (("leaves_A", site.n_in, "in"), ("leaves_B", site.n_out, "out")):
            m = leaf_size(d, config.order)
            if m < 2:
                raise ValueError(
                    f"order: expected leaves of at least 2 columns ({letter}_features {d} of {site.name}), "
                    f"got {m} for order {config.order}"
                )
            shapes[part] = (n_experts, config.rank(site.name), config.order * m)
        return shapes

    def __init__(self, config: AdapterConfig, n_experts: int, site: Site) -> None:
        super().__init__(config, n_experts, site)
        self.order, self.n_in, self.n_out = config.order, site.n_in, site.n_out
        self.by_leaf = config.mixing == "leaves"
        shapes = self.shapes(config, n_experts, site)

        def bound(part: str, d: int) -> float:
            _, r, columns = shapes[part]
            m = columns // config.order
            if config.init == "tlora":
                return float(1 / (np.sqrt(3) * d ** (1 / config.order)))
            if self.by_leaf:
                return float(np.sqrt(6 / ((config.order + n_experts) * r * m)))
            return float(1 / np.sqrt(3 * site.n_in))

        self.leaves_A = site.uniform("leaves_A", shapes["leaves_A"], bound("leaves_A", site.n_in), "skills")
        self.leaves_B = site.uniform("leaves_B", shapes["leaves_B"], bound("leaves_B", site.n_out), "skills")
        if config.zero_start:
            self.leaves_B.data[..., : shapes["leaves_B"][2] // config.order] = 0

    def factors(self, weights: Any, batch: Batch) -> tuple[Any, Any, Any]:
        """The products; what is left to mix."""
        leaves: tuple[Any, Any] = (self.leaves_A, self.leaves_B)
        if self.by_leaf and weights is not None:
            leaves, weights = (tape.mix(weights, leaves[0]), tape.mix(weights, leaves[1])), None
        A, B = (
            tape.tensor_product(part, self.order, d)
            for part, d in zip(leaves, (self.n_in, self.n_out), strict=True)
        )
        return A, B, weights

    def extra_repr(self) -> str:
        """Sizes."""
        n_experts, r, _ = self.leaves_A.shape
        sizes = f"{n_experts} x rank {r}, order {self.order}, {self.n_in} -> {self.n_out}"
        return f"{sizes}, scale={self.scale:g}"
