"""Operations value by value: add, multiply, scale_by, dropout, relu, gelu, silu."""

from __future__ import annotations

from typing import Any, NamedTuple

from polymoe import _core
from polymoe.functional._arrays import Array, index, like, real, wants


class AddGrads(NamedTuple):
    """Gradients of :func:`add`."""

    da: Array
    db: Array


def add(a: Any, b: Any) -> tuple[Array, None]:
    """``a + b``, two arrays of the same shape; there is no broadcasting."""
    a = real(a, "a")
    b = like(a, b)
    if a.shape != b.shape:
        raise ValueError(f"b: expected shape {a.shape}, got {b.shape}")
    y = _core.empty(a.shape, a.dtype)
    _core.add(a.reshape(-1), b.reshape(-1), y.reshape(-1))
    return y, None


def add_backward(saved: None, dy: Any) -> AddGrads:
    """Both gradients are ``dy`` itself."""
    return AddGrads(dy, dy)


class MultiplySaved(NamedTuple):
    """What :func:`multiply` keeps: its inputs, not copied."""

    a: Array
    b: Array
    adapter_ids: Array | None
    cu_seqlens: Array | None


class MultiplyGrads(NamedTuple):
    """Gradients of :func:`multiply`."""

    da: Array | None
    db: Array | None


def multiply(a: Any, b: Any, adapter_ids: Any = None, cu_seqlens: Any = None) -> tuple[Array, MultiplySaved]:
    """``a * b``: two arrays of the same shape, or columns scaled by a vector, one for all tokens or one for
    each group.

    Args:
        a: any shape; [N, D] where b is of another one.
        b: the shape of a; or a vector [D]; or [G, D], or [G, 1, D] as :func:`mix` makes it, the vectors of G
            groups.
        adapter_ids: [B], the group of every example; with it b is always taken as vectors of groups. None:
            there is one vector.
        cu_seqlens: [B + 1], where every example starts, and N. None: one example.

    (IA)^3: Liu et al. 2022, arXiv 2205.05638, y = x * l; MoV mixes such vectors: Zadouri et al. 2023, arXiv
    2309.05444.
    """
    a = real(a, "a")
    b = like(a, b)
    adapter_ids = None if adapter_ids is None else index(adapter_ids, "adapter_ids")
    cu_seqlens = None if cu_seqlens is None else index(cu_seqlens, "cu_seqlens")
    saved = MultiplySaved(a, b, adapter_ids, cu_seqlens)
    return _multiply(a, saved), saved


def multiply_backward(saved: MultiplySaved, dy: Any, needs: set[str] | None = None) -> MultiplyGrads:
    """``da = dy * b``; ``db`` = dy * a, summed over the tokens that b was used for, in the order of the
    tokens."""
    a, b, adapter_ids, cu_seqlens = saved
    dy, da, db = like(a, dy), None, None
    if dy.shape != a.shape:
        raise ValueError(f"dy: expected shape {a.shape}, got {dy.shape}")
    if wants(needs, "a"):
        da = _multiply(dy, saved)
    if wants(needs, "b"):
        db = _core.empty(b.shape, a.dtype)
        if _same_shape(saved):
            _core.multiply(dy.reshape(-1), a.reshape(-1), db.reshape(-1))
        else:
            _core.multiply_rows_bwd(dy, a, adapter_ids, cu_seqlens, _rows(db))
    return MultiplyGrads(da, db)


def _same_shape(saved: MultiplySaved) -> bool:
    return saved.a.shape == saved.b.shape and saved.adapter_ids is None


def _rows(b: Array) -> Array:
    """The vectors [G, D] of b, a view."""
    if b.ndim == 1:
        return b[None]
    return b[:, 0] if b.ndim == 3 and b.shape[1] == 1 else b


def _multiply(x: Array, saved: MultiplySaved) -> Array:
    """``x * b``, x in the shape of a."""
    y = _core.empty(x.shape, x.dtype)
    if _same_shape(saved):
        _core.multiply(x.reshape(-1), saved.b.reshape(-1), y.reshape(-1))
    else:
        _core.multiply_rows_fwd(x, _rows(saved.b), saved.adapter_ids, saved.cu_seqlens, y)
    return y


class ScaleBySaved(NamedTuple):
    """What :func:`scale_by` keeps."""

    x: Array
    log_scale: Array


class ScaleByGrads(NamedTuple):
    """Gradients of :func:`scale_by`."""

    dx: Array
    dlog_scale: Array


def scale_by(x: Any, log_scale: Any) -> tuple[Array, ScaleBySaved]:
    """``x * exp(log_scale)``, any shape, ``log_scale`` [1]: a learned temperature."""
    x = real(x)
    log_scale = like(x, log_scale)
    y = _core.empty(x.shape, x.dtype)
    _core.scale_by_fwd(x.reshape(-1), log_scale, y.reshape(-1))
    return y, ScaleBySaved(x, log_scale)


def scale_by_backward(saved: ScaleBySaved, dy: Any) -> ScaleByGrads:
    """``dx = dy exp(log_scale)``, ``dlog_scale`` [1] = sum of ``dy * y``."""
    x, log_scale = saved
    dy = like(x, dy)
    dx, dlog_scale = _core.empty(x.shape, x.dtype), _core.empty((1,), x.dtype)
    _core.scale_by_bwd(dy.reshape(-1), x.reshape(-1), log_scale, dx.reshape(-1), dlog_scale)
    return ScaleByGrads(dx, dlog_scale)


class DropoutGrads(NamedTuple):
    """Gradient of :func:`dropout`."""

    dx: Array


def dropout(x: Any, mask_scale: Any) -> tuple[Array, Array]:
    """``x * mask_scale``: the mask holds 0 where a value is dropped and 1 / (1 - p) where it stays, in the
    shape of ``x``."""
    x = real(x)
    mask_scale = like(x, mask_scale)
    if x.shape != mask_scale.shape:
        raise ValueError(f"mask_scale: expected shape {x.shape}, got {mask_scale.shape}")
    y = _core.empty(x.shape, x.dtype)
    _core.multiply(x.reshape(-1), mask_scale.reshape(-1), y.reshape(-1))
    return y, mask_scale


def dropout_backward(saved: Array, dy: Any) -> DropoutGrads:
    """``dx = dy * mask_scale``; the mask is a constant."""
    return DropoutGrads(dropout(dy, saved)[0])


class ReluGrads(NamedTuple):
    """Gradient of :func:`relu`."""

    dx: Array


def relu(x: Any) -> tuple[Array, Array]:
    """``max(x, 0)``, any shape; y itself is what :func:`relu_backward` needs."""
    x = real(x)
    y = _core.empty(x.shape, x.dtype)
    _core.relu_fwd(x.reshape(-1), y.reshape(-1))
    return y, y


def relu_backward(saved: Array, dy: Any) -> ReluGrads:
    """``dx = dy`` where y is positive, else 0."""
    dy = like(saved, dy)
    dx = _core.empty(saved.shape, saved.dtype)
    _core.relu_bwd(saved.reshape(-1), dy.reshape(-1), dx.reshape(-1))
    return ReluGrads(dx)


_GELU_FORMS = {"none": 0, "tanh": 1}


class GeluSaved(NamedTuple):
    """What :func:`gelu` keeps."""

    x: Array
    form: int


class GeluGrads(NamedTuple):
    """Gradient of :func:`gelu`."""

    dx: Array


def gelu(x: Any, approximate: str = "none") -> tuple[Array, GeluSaved]:
    """``x Phi(x)`` with the exact normal distribution (``"none"``) or its tanh approximation (``"tanh"``);
    any shape.

    float32 is within 1e-6 of the exact value. Hendrycks and Gimpel 2016, arXiv 1606.08415.
    """
    if approximate not in _GELU_FORMS:
        raise ValueError(f"approximate: expected one of {list(_GELU_FORMS)}, got {approximate!r}")
    x, form = real(x), _GELU_FORMS[approximate]
    y = _core.empty(x.shape, x.dtype)
    _core.gelu_fwd(form, x.reshape(-1), y.reshape(-1))
    return y, GeluSaved(x, form)


def gelu_backward(saved: GeluSaved, dy: Any) -> GeluGrads:
    """The derivative is computed again from ``x``."""
    x, form = saved
    dy = like(x, dy)
    dx = _core.empty(x.shape, x.dtype)
    _core.gelu_bwd(form, x.reshape(-1), dy.reshape(-1), dx.reshape(-1))
    return GeluGrads(dx)


class SiluGrads(NamedTuple):
    """Gradient of :func:`silu`."""

    dx: Array


def silu(x: Any) -> tuple[Array, Array]:
    """``x sigmoid(x)``, any shape; x itself is what :func:`silu_backward` needs.

    Hendrycks and Gimpel 2016, arXiv 1606.08415; in gated feed-forwards: Shazeer 2020, arXiv 2002.05202.
    """
    x = real(x)
    y = _core.empty(x.shape, x.dtype)
    _core.silu_fwd(x.reshape(-1), y.reshape(-1))
    return y, x


def silu_backward(saved: Array, dy: Any) -> SiluGrads:
    """The derivative is computed again from ``x``."""
    dy = like(saved, dy)
    dx = _core.empty(saved.shape, saved.dtype)
    _core.silu_bwd(saved.reshape(-1), dy.reshape(-1), dx.reshape(-1))
    return SiluGrads(dx)
