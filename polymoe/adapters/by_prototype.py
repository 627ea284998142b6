"""A router that nobody trains: tokens go to the LoRAs whose strongest input direction they lie along."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from polymoe import tape
from polymoe.adapters.by_token import check_top_k
from polymoe.adapters.low_rank import LoraExperts
from polymoe.adapters.parts import Experts, Router, Site, expect
from polymoe.batch import Batch, Routing
from polymoe.parameters import Parameter

if TYPE_CHECKING:
    from polymoe.adapters.config import AdapterConfig


class Arrow(Router):
    """Prototypes of trained LoRAs, compared with each token.

        v_s = the first right-singular vector of B_s A_s, |v_s| = 1        ``prototypes`` [S, D]
        w = softmax(|x . v_s| / temperature) over the ``top_k`` largest    (equal ones: the lower index first)

    A singular vector has no sign, hence the absolute value. Prototypes are made of the experts that an
    adapter starts from (:meth:`start`), saved with it and never trained; without trained experts they are 0,
    which takes the first ``top_k`` alike. x gets no gradient from here: the choice is no function that
    anybody learns. A ``top_k`` of None keeps all. Ostapenko et al. 2024, arXiv 2405.11157.
    """

    axis = "token"
    fields = frozenset({"top_k"})

    @staticmethod
    def check(config: AdapterConfig) -> None:
        """Outputs of LoRAs are mixed, k is at most the number of experts of every layer."""
        why = f"the router {config.router!r}"
        expect(config, "mixing", "outputs", why)
        expect(config, "experts", "lora", f"{why} compares pairs")
        check_top_k(config)

    def __init__(self, config: AdapterConfig, site: Site) -> None:
        super().__init__(config, site)
        self.top_k, self.temperature = config.top_k, config.temperature
        self.prototypes = site.full((config.skills(site.name), site.n_in), 0, "content")
        self.prototypes.trainable = False

    def start(self, experts: Experts) -> None:
        """Make the prototypes."""
        assert isinstance(experts, LoraExperts)
        self.prototypes.data[...] = prototypes(experts.lora_A, experts.lora_B)

    def __call__(self, batch: Batch, x: Any) -> Routing:
        """Weights [N, k] beside their ids, or [N, S]."""
        scores = np.abs(tape.dense(tape.data_of(x), self.prototypes, None)) / self.temperature
        if self.top_k is None:
            return Routing("token", tape.softmax_router(scores))
        weights, ids = tape.topk_router(scores, self.top_k)
        return Routing("token", weights, ids)

    def extra_repr(self) -> str:
        """Sizes."""
        return f"{len(self.prototypes.data)} prototypes" + (f", top_k={self.top_k}" if self.top_k else "")


def prototypes(lora_A: Parameter, lora_B: Parameter) -> np.ndarray:
    """The first right-singular vector of each update, [S, D] float64 of A [S, r, D] and B [S, r, O]; 0 for an
    update that is 0.

    With ``B B^T = L L^T`` the update has the right-singular vectors of ``L^T A``, those of which are
    ``(L^T A)^T u`` for the eigenvectors u of the r x r matrix ``L^T A A^T L``: no [O, D] is made, and einsum
    sums in one order whatever the threads.
    """
    A, B = (part.data.astype(np.float64) for part in (lora_A, lora_B))
    vectors: np.ndarray = np.zeros((len(A), A.shape[2]))
    for s, (a, b) in enumerate(zip(A, B, strict=True)):
        squares, U = np.linalg.eigh(np.einsum("ro,qo->rq", b, b))
        L = U * np.sqrt(np.maximum(squares, 0))
        reduced = np.einsum("rq,rd->qd", L, a)
        u = np.linalg.eigh(np.einsum("rd,qd->rq", reduced, reduced))[1][:, -1]
        v = np.einsum("q,qd->d", u, reduced)
        if norm := np.sqrt(np.einsum("d,d->", v, v)):
            vectors[s] = v * (np.sign(v[np.abs(v).argmax()]) / norm)
    return vectors
