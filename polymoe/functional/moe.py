"""Experts mixed by their outputs, token by token: moe."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from polymoe import _core
from polymoe.functional._arrays import Array, index, like, like_or_none, real, wants
from polymoe.functional.packed import PackedWeight

Formulation = Literal["auto", "dense", "buckets"]

BUCKETS_UP_TO = 0.4
"""Share of the experts that a token uses up to which ``auto`` computes only the tokens of each expert."""


class MoeSaved(NamedTuple):
    """What :func:`moe` keeps: its inputs, not copied, and h, what it made of ``scale * x A^T``."""

    x: Array
    weight: PackedWeight | None
    lora_A: Array
    lora_B: Array
    weights: Array
    ids: Array | None
    scale: float
    buckets: bool
    h: Array


class MoeGrads(NamedTuple):
    """Gradients of :func:`moe`; None where there is none. The weight and the bias are frozen."""

    dx: Array | None
    dlora_A: Array | None
    dlora_B: Array | None
    dweights: Array | None


def moe(
    x: Any,
    weight: Any,
    bias: Any,
    lora_A: Any,
    lora_B: Any,
    weights: Any,
    ids: Any = None,
    scale: float = 1.0,
    formulation: Formulation = "auto",
) -> tuple[Array, MoeSaved]:
    """``y = x W^T + bias + scale * sum_k w[n, k] (x A_e^T) B_e`` with e = ids[n, k]: every token has its own
    weights.

    Dense: Zadouri et al. 2023 (MoLoRA, arXiv 2309.05444); the k best: Gao et al. 2024 (MoLA, arXiv
    2402.08562); a shared A: Tian et al. 2024 (HydraLoRA, arXiv 2404.19245), Zhao et al. 2024 (MoSLD, arXiv
    2412.08946). Weights of examples or groups: :func:`polymoe.functional.linear` with mixing "outputs".

    Args:
        x: [N, D], the tokens of all examples one after another.
        weight: frozen [O, D], a :class:`PackedWeight` (an array is packed for this call alone), or None.
        bias: [O], frozen, or None.
        lora_A: [S, r, D], or [1, r, D]: one that all experts share.
        lora_B: [S, r, O].
        weights: [N, S], or [N, k] with ``ids``.
        ids: [N, k] integers, the experts that a token uses. None: all, in order.
        scale: of the low-rank term.
        formulation: of ``ids``. "buckets" computes for each expert the tokens that chose it and nothing
            else; "dense" computes every expert for every token (a shared A once); "auto" takes buckets where
            k is at most 0.4 S.
            The choice does not depend on the tokens: one gives the same bits in any batch.

    Returns:
        y [N, O] and what :func:`moe_backward` needs.

    Raises:
        TypeError: an array of another dtype than x; "buckets" without ids.
        ValueError: shapes that do not fit.
        IndexError: an id without an expert.
    """
    x = real(x)
    if weight is not None and not isinstance(weight, PackedWeight):
        weight = PackedWeight(like(x, weight))
    if formulation not in ("auto", "dense", "buckets"):
        raise ValueError(f"formulation: expected 'auto', 'dense' or 'buckets', got {formulation!r}")
    bias = like_or_none(x, bias)
    lora_A, lora_B, weights = like(x, lora_A), like(x, lora_B), like(x, weights)
    ids = None if ids is None else index(ids, "ids")
    shared, n_experts = len(lora_A) < len(lora_B), len(lora_B)
    buckets = formulation == "buckets"
    if formulation == "auto" and ids is not None and ids.ndim == 2:
        buckets = ids.shape[1] <= BUCKETS_UP_TO * n_experts
    aside = ids.shape[-1] if buckets and ids is not None and ids.ndim == 2 else 1 if shared else n_experts
    h = _core.empty((*x.shape[:1], (lora_A.shape[1] if lora_A.ndim == 3 else 0) * aside), x.dtype)
    y = _core.empty((*x.shape[:1], weight.shape[0] if weight is not None else lora_B.shape[-1]), x.dtype)
    panels = None if weight is None else weight.panels
    experts = (lora_A, lora_B, weights, ids, scale, buckets)
    _core.moe_fwd(x, panels, bias, *experts, y, h)
    return y, MoeSaved(x, weight, *experts, h)


def moe_backward(saved: MoeSaved, dy: Any, needs: set[str] | None = None, onto: Any = None) -> MoeGrads:
    """Gradients of :func:`moe` for ``dy`` [N, O]; only those of the arguments named in ``needs``.

    With ``e_s = scale * dy B_s^T``: ``dx = dy W + sum_s w_s e_s A_s``, ``dA_s = sum_n w_s e_s^T x``, ``dB_s =
    sum_n w_s h_s^T dy``, ``dw_s = e_s . (x A_s^T)``; a shared A gets the sum over experts. Experts that no
    token uses get 0. ``onto`` [N, D], if given, is added to dx.
    """
    x, weight, lora_A, lora_B, weights = saved[:5]
    dy = like(x, dy)

    def empty(name: str, a: Array) -> Array | None:
        return _core.empty(a.shape, a.dtype) if wants(needs, name) else None

    grads = MoeGrads(
        empty("x", x), empty("lora_A", lora_A), empty("lora_B", lora_B), empty("weights", weights)
    )
    panels = None if grads.dx is None or weight is None else weight.transpose()
    _core.moe_bwd(dy, panels, x, saved.h, *saved[2:-1], like_or_none(x, onto), *grads)
    return grads
