"""The adapted linear layer: a frozen, packed weight and a grouped low-rank term in one pass over tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from polymoe import _core
from polymoe.functional._arrays import Array, index_or_none, like, like_or_none, real, wants
from polymoe.functional.invariance import get_batch_invariant
from polymoe.functional.packed import PackedFactor, PackedWeight

Formulation = Literal["auto", "mix", "concat"]
Mixing = Literal["factors", "outputs"]
Activation = Literal["relu", "gelu", "gelu_tanh", "silu"]
MIX, CONCAT, OUTPUTS = range(3)  # as the extension counts them
ACTIVATIONS = {None: 0, "relu": 1, "gelu": 2, "gelu_tanh": 3, "silu": 4}
NO_TERM = (None, None, None, None, None, None, 1.0, MIX)  # a plain product: lora_A ... form

CONCAT_BELOW = 5
"""Tokens per group under which ``auto`` puts the skills side by side: mixing costs more than it saves."""


class LinearSaved(NamedTuple):
    """What :func:`linear` keeps: its inputs, not copied, and h = scale * x A^T [N, ranks side by side]. Its
    rows are sorted by group in each chunk where groups take turns every few tokens. Without a low-rank term
    or an activation nothing needs x: it is [0, D] then."""

    x: Array
    weight: PackedWeight | None
    lora_A: Array | None
    lora_B: Array | None
    weights: Array | None
    ids: Array | None
    adapter_ids: Array | None
    cu_seqlens: Array | None
    scale: float
    form: int
    activation: int
    times: Array | None
    h: Array | None


class LinearGrads(NamedTuple):
    """Gradients of :func:`linear`; None where there is none. The weight and the bias are frozen."""

    dx: Array | None
    dlora_A: Array | None
    dlora_B: Array | None
    dweights: Array | None
    dtimes: Array | None = None


def linear(
    x: Any,
    weight: Any,
    bias: Any = None,
    lora_A: Any = None,
    lora_B: Any = None,
    weights: Any = None,
    adapter_ids: Any = None,
    cu_seqlens: Any = None,
    scale: float = 1.0,
    formulation: Formulation = "auto",
    mixing: Mixing = "factors",
    ids: Any = None,
    activation: Activation | None = None,
    times: Any = None,
) -> tuple[Array, LinearSaved]:
    """``y = x W^T + bias + scale * (x A_g^T) B_g``, the pair of group g mixed by head from S experts; or
    ``y = x W^T + bias + scale * sum_s w[g, s] (x A_s^T) B_s``, their outputs mixed. With ``activation``, x
    stands for ``activation(x) * times``, which is never held as a whole.

    Low-rank adaptation is Hu et al. 2021 (arXiv 2106.09685); mixing by task, Ponti et al. 2022 (arXiv
    2202.13914); by head, Caccia et al. 2022 (arXiv 2211.03831); mixing outputs by task, Wang et al. 2023
    (C-Poly, arXiv 2312.03248).

    Args:
        x: [N, D], the tokens of all examples one after another.
        weight: frozen [O, D], a :class:`PackedWeight`. An array is packed for this call alone. None: the
            low-rank term alone.
        bias: [O], frozen.
        lora_A, lora_B: [S, r, D] and [S, r, O], given together. ``lora_A`` may be a :class:`PackedFactor`,
            with neither ``weights`` nor ``scale``.
        weights: [G, Q, S]: ``A_g = sum_s weights[g, q, s] lora_A[s]`` in the q-th of Q blocks of columns, B_g
            likewise. None: the pair of group g is lora_A[g], lora_B[g]. With ``ids``: [G, k].
        adapter_ids: [B], the group of every example. None: group 0 for all.
        cu_seqlens: [B + 1], where every example starts, and N. None: one example.
        scale: of the low-rank term.
        formulation: of mixing factors. "mix" makes one pair per group; "concat" puts all experts side by side
            and weights them in the rank space (one head only), which is faster for few tokens per group;
            "auto" chooses by their number, unless the mode of :func:`set_batch_invariant` is on: then it is
            "mix". With one of the first two an example gives the same bits in any batch.
        mixing: "outputs" sums what the experts make of x, with one head: their ranks lie side by side.
        ids: [G, k], with mixing "outputs": the experts that ``weights`` [G, k] belong to. Only these are
            computed, the others are not touched.
        activation: of x: "relu", "gelu" (exact), "gelu_tanh" or "silu", as the functions of these names.
        times: [N, D], what the activated x is multiplied with, as in gated feed-forwards. None: nothing.

    Returns:
        y [N, O] and what :func:`linear_backward` needs.

    Raises:
        TypeError: an array of another dtype than x; ``times`` without an activation.
        ValueError: shapes that do not fit, wrong offsets, heads that do not divide D and O, or "concat" or
            "outputs" with several heads.
        IndexError: an adapter id without a group, an id without an expert.
    """
    x, reading = real(x), (_reading(activation), like_or_none(x, times))
    layer, saved = _layer(
        x, reading, weight, bias, lora_A, lora_B, weights, adapter_ids, cu_seqlens, scale,
        formulation, mixing, ids,
    )  # fmt: skip
    _core.linear_fwd(x, *reading, layer)
    return layer[-2], saved


def linears(
    x: Any, layers: Sequence[Mapping[str, Any]], activation: Activation | None = None, times: Any = None
) -> tuple[list[Array], list[LinearSaved]]:
    """:func:`linear` of the same x for each of the layers, which are mappings of its other arguments, at most
    eight: the same bits, but rows of x are brought to the products once.

    Returns:
        y [N, O] of each layer, and what :func:`linears_backward` needs.

    Raises:
        as :func:`linear`; TypeError for no layer or more than eight.
    """
    x, reading = real(x), (_reading(activation), like_or_none(x, times))
    made = [_layer(x, reading, **layer) for layer in layers]
    _core.linear_fwd(x, *reading, *(layer for layer, _ in made))
    return [layer[-2] for layer, _ in made], [saved for _, saved in made]


def _reading(activation: Activation | None) -> int:
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {list(ACTIVATIONS)}, got {activation!r}")
    return ACTIVATIONS[activation]


def _layer(
    x: Array,
    reading: tuple[int, Array | None],
    weight: Any,
    bias: Any = None,
    lora_A: Any = None,
    lora_B: Any = None,
    weights: Any = None,
    adapter_ids: Any = None,
    cu_seqlens: Any = None,
    scale: float = 1.0,
    formulation: Formulation = "auto",
    mixing: Mixing = "factors",
    ids: Any = None,
) -> tuple[tuple[Any, ...], LinearSaved]:
    """A layer as the extension takes it, y and h at its end, and what is saved of it."""
    if weight is not None and not isinstance(weight, PackedWeight):
        weight = PackedWeight(like(x, weight))
    if formulation not in ("auto", "mix", "concat"):
        raise ValueError(f"formulation: expected 'auto', 'mix' or 'concat', got {formulation!r}")
    if mixing not in ("factors", "outputs"):
        raise ValueError(f"mixing: expected 'factors' or 'outputs', got {mixing!r}")
    if ids is not None and mixing == "factors":
        raise ValueError("ids: expected None (factors are mixed by dense weights), got an array")
    panels = None
    if type(lora_A) is PackedFactor:
        if weights is not None or scale != 1:
            raise ValueError("lora_A: expected an array with weights or a scale, got a PackedFactor")
        lora_A, panels = lora_A.factor, lora_A.panels
    # one by one: generators cost more than they convert, where a token is written
    bias = like_or_none(x, bias)
    lora_A, lora_B, weights = like_or_none(x, lora_A), like_or_none(x, lora_B), like_or_none(x, weights)
    ids, adapter_ids = index_or_none(ids, "ids"), index_or_none(adapter_ids, "adapter_ids")
    cu_seqlens = index_or_none(cu_seqlens, "cu_seqlens")
    form = CONCAT if formulation == "concat" else MIX
    chooses = formulation == "auto" and not get_batch_invariant()
    if chooses and weights is not None and weights.ndim == 3 and weights.shape[1] == 1:
        form = CONCAT if len(x) < CONCAT_BELOW * len(weights) else MIX
    if mixing == "outputs":
        form = OUTPUTS
    h = None
    if lora_A is not None and lora_A.ndim == 3 and x.ndim == 2:
        h = _core.empty((len(x), lora_A.shape[1] * _side_by_side(form, lora_A, weights, ids)), x.dtype)
    n_out = weight.shape[0] if weight is not None else 0 if lora_B is None else lora_B.shape[-1]
    y = _core.empty((*x.shape[:1], n_out), x.dtype)
    term = (lora_A, lora_B, weights, ids, adapter_ids, cu_seqlens, scale, form)
    layer = (None if weight is None else weight.panels, bias, *term, panels, y, h)
    kept = x[:0].copy() if lora_A is None and not reading[0] else x
    return layer, LinearSaved(kept, weight, *term, *reading, h)


def _side_by_side(form: int, lora_A: Array, weights: Array | None, ids: Array | None) -> int:
    """How many experts' ranks are the columns of h."""
    if weights is None or form == MIX:
        return 1
    return ids.shape[-1] if ids is not None else len(lora_A)


def linear_backward(
    saved: LinearSaved, dy: Any, needs: set[str] | None = None, onto: Any = None
) -> LinearGrads:
    """Gradients of :func:`linear` for ``dy`` [N, O]; only those of the arguments named in ``needs``.

    With ``e = scale * dy B_g^T``: ``dx = dy W + e A_g``, ``dA_g = e^T x``, ``dB_g = h^T dy``, and from them
    those of the bank and ``dweights[g, q, s] = <dA_g[q], lora_A[s, q]> + <dB_g[q], lora_B[s, q]>``. The mixed
    pairs are computed again. Where outputs are mixed, ``dweights[g, s] = scale * <dy, (x A_s^T) B_s>``.

    With an activation f the x above is f(x) * times, formed again, and from its gradient d come
    ``dx = d * times * f'(x)`` and ``dtimes = d * f(x)``.

    ``onto`` [N, D], if given, is added to dx, which saves a pass over both.
    """
    return linears_backward([saved], [dy], [needs], onto)[0]


def linears_backward(
    saved: Sequence[LinearSaved],
    dys: Sequence[Any],
    needs: Sequence[set[str] | None] | None = None,
    onto: Any = None,
) -> list[LinearGrads]:
    """Gradients of :func:`linears`, for ``dys`` [N, O] of each layer; of each those in its ``needs``. dx and
    dtimes are sums over the layers and stand in the first alone."""
    needs = [None] * len(saved) if needs is None else needs
    first = saved[0]
    x, times = next((s.x for s in saved if len(s.x)), first.x), first.times
    dys = [like(x, dy) for dy in dys]

    def empty(a: Array | None, wanted: bool) -> Array | None:
        return _core.empty(a.shape, a.dtype) if a is not None and wanted else None

    dtimes = empty(times, wants(needs[0], "times"))
    dx = None
    if any(wants(n, "x") for n in needs) or dtimes is not None:
        dx = _core.empty((*dys[0].shape[:1], *x.shape[1:]), x.dtype)
    layers, grads = [], []
    for s, dy, n in zip(saved, dys, needs, strict=True):
        panels = None if dx is None or s.weight is None else s.weight.transpose()
        learnt = [empty(getattr(s, name), wants(n, name)) for name in ("lora_A", "lora_B", "weights")]
        layers.append((dy, panels, s.h, *s[2:10], *learnt))
        grads.append(LinearGrads(None, *learnt))
    activated = bool(first.activation)
    read = x if activated or any(s.lora_A is not None for s in saved) else None
    onto, after = (None, onto) if activated else (like_or_none(x, onto), None)
    _core.linear_bwd(read, first.activation, times, onto, dx, dtimes, *layers)
    if after is not None and dx is not None:
        dx += like(x, after)
    grads[0] = grads[0]._replace(dx=dx, dtimes=dtimes)
    return grads
