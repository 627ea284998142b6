"""Operations value by value: add, scale_by, dropout, gelu."""

from __future__ import annotations

from typing import Any, NamedTuple

from polymoe import _core
from polymoe.functional._arrays import Array, like, real


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
