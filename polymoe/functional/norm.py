"""Normalisation of rows: layer_norm, rms_norm, l2_normalize."""

from __future__ import annotations

from typing import Any, NamedTuple

from polymoe import _core
from polymoe.functional._arrays import Array, like, like_or_none, real, wants


class LayerNormSaved(NamedTuple):
    """What :func:`layer_norm` keeps: its inputs, and two numbers for each row; with ``inverse`` x is y, and
    there is no residual."""

    x: Array
    residual: Array | None
    weight: Array
    bias: Array
    inverse: Array | None
    mean: Array
    rstd: Array


class LayerNormGrads(NamedTuple):
    """Gradients of :func:`layer_norm`; ``dx`` and ``dresidual`` are one array."""

    dx: Array
    dweight: Array | None
    dbias: Array | None
    dresidual: Array


def layer_norm(
    x: Any, weight: Any, bias: Any, eps: float = 1e-12, residual: Any = None, inverse: Any = None
) -> tuple[Array, LayerNormSaved]:
    """Rows of ``x + residual`` [N, D] with mean 0 and (biased) variance 1, times ``weight`` [D] plus ``bias``
    [D].

    ``inverse``: ``1 / weight`` [D], finite, if backward shall find the normalised rows from y, which is then
    kept in place of x and residual: less memory where what follows keeps y too. No weight may be far smaller
    than its bias.

    Ba, Kiros and Hinton 2016, arXiv 1607.06450.
    """
    x = real(x)
    residual, inverse = like_or_none(x, residual), like_or_none(x, inverse)
    weight, bias = like(x, weight), like(x, bias)
    y, mean, rstd = (
        _core.empty(x.shape, x.dtype),
        _core.empty(x.shape[:1], x.dtype),
        _core.empty(x.shape[:1], x.dtype),
    )
    _core.layer_norm_fwd(x, residual, weight, bias, eps, y, mean, rstd)
    if inverse is not None:
        x, residual = y, None
    return y, LayerNormSaved(x, residual, weight, bias, inverse, mean, rstd)


def layer_norm_backward(saved: LayerNormSaved, dy: Any, needs: set[str] | None = None) -> LayerNormGrads:
    """Gradients by the formulas in ``csrc/kernels/norm.h``; ``dweight`` and ``dbias`` only when needed."""
    x, _, weight = saved[:3]
    dy = like(x, dy)
    dx = _core.empty(x.shape, x.dtype)
    dweight = _core.empty(weight.shape, x.dtype) if wants(needs, "weight") else None
    dbias = _core.empty(weight.shape, x.dtype) if wants(needs, "bias") else None
    _core.layer_norm_bwd(dy, *saved, dx, dweight, dbias)
    return LayerNormGrads(dx, dweight, dbias, dx)


class RmsNormSaved(NamedTuple):
    """What :func:`rms_norm` keeps: its inputs, and one number for each row; with ``inverse`` x is y."""

    x: Array
    weight: Array
    inverse: Array | None
    rstd: Array


class RmsNormGrads(NamedTuple):
    """Gradients of :func:`rms_norm`."""

    dx: Array
    dweight: Array | None


def rms_norm(x: Any, weight: Any, eps: float = 1e-6, inverse: Any = None) -> tuple[Array, RmsNormSaved]:
    """Rows of ``x`` [N, D] divided by ``sqrt(mean(x^2) + eps)``, times ``weight`` [D]. ``inverse`` as in
    :func:`layer_norm`.

    Zhang and Sennrich 2019, arXiv 1910.07467.
    """
    x = real(x)
    weight, inverse = like(x, weight), like_or_none(x, inverse)
    y, rstd = _core.empty(x.shape, x.dtype), _core.empty(x.shape[:1], x.dtype)
    _core.rms_norm_fwd(x, weight, eps, y, rstd)
    return y, RmsNormSaved(x if inverse is None else y, weight, inverse, rstd)


def rms_norm_backward(saved: RmsNormSaved, dy: Any, needs: set[str] | None = None) -> RmsNormGrads:
    """Gradients by the formulas in ``csrc/kernels/norm.h``; ``dweight`` only when needed."""
    x, weight = saved[:2]
    dx = _core.empty(x.shape, x.dtype)
    dweight = _core.empty(weight.shape, x.dtype) if wants(needs, "weight") else None
    _core.rms_norm_bwd(like(x, dy), *saved, dx, dweight)
    return RmsNormGrads(dx, dweight)


class L2NormalizeSaved(NamedTuple):
    """What :func:`l2_normalize` keeps; ``norm`` [B] is negative where the length was below eps."""

    y: Array
    norm: Array


class L2NormalizeGrads(NamedTuple):
    """Gradient of :func:`l2_normalize`."""

    dx: Array


def l2_normalize(x: Any, eps: float = 1e-12) -> tuple[Array, L2NormalizeSaved]:
    """Rows of ``x`` [B, D] divided by their Euclidean length, or by ``eps`` where that is larger."""
    x = real(x)
    y, norm = _core.empty(x.shape, x.dtype), _core.empty(x.shape[:1], x.dtype)
    _core.l2_normalize_fwd(x, eps, y, norm)
    return y, L2NormalizeSaved(y, norm)


def l2_normalize_backward(saved: L2NormalizeSaved, dy: Any) -> L2NormalizeGrads:
    """``dx = (dy - y <y, dy>) / length``."""
    y, norm = saved
    dy = like(y, dy)
    dx = _core.empty(y.shape, y.dtype)
    _core.l2_normalize_bwd(dy, y, norm, dx)
    return L2NormalizeGrads(dx)
