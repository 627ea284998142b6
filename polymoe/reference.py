"""Every operation in a few lines of NumPy: the specification that the kernels are tested against.

Names and signatures are those of :mod:`polymoe.functional`: ``op(...) -> (y, saved)``, ``op_backward(saved, dy)`` -> a dict from
``d<argument>`` to the gradient. Nothing here is fast, and nothing here calls the kernels. Extents: B examples, N packed tokens,
D columns, S skills, Q heads, T tasks, G groups.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Pair = tuple[Any, Any]  # y, saved
Grads = dict[str, Any]  # "d" + argument -> gradient, or None

_erf = np.vectorize(math.erf, otypes=[float])


def add(a: Any, b: Any) -> Pair:
    return a + b, None


def add_backward(saved: Any, dy: Any) -> Grads:
    return {"da": dy, "db": dy}


def scale_by(x: Any, log_scale: Any) -> Pair:
    y = x * np.exp(log_scale)
    return y, (y, log_scale)


def scale_by_backward(saved: Any, dy: Any) -> Grads:
    y, log_scale = saved
    return {"dx": dy * np.exp(log_scale), "dlog_scale": np.sum(dy * y).reshape(1)}


def dropout(x: Any, mask_scale: Any) -> Pair:
    return x * mask_scale, mask_scale


def dropout_backward(saved: Any, dy: Any) -> Grads:
    return {"dx": dy * saved}


def gelu(x: Any, approximate: str = "none") -> Pair:
    if approximate == "tanh":
        return x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))), (x, approximate)
    return x * 0.5 * (1 + _erf(x / math.sqrt(2))), (x, approximate)


def gelu_backward(saved: Any, dy: Any) -> Grads:
    x, approximate = saved
    if approximate == "tanh":
        t = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
        slope = 0.5 * (1 + t) + x * 0.5 * (1 - t * t) * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)
    else:
        slope = 0.5 * (1 + _erf(x / math.sqrt(2))) + x * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return {"dx": dy * slope}


def layer_norm(x: Any, weight: Any, bias: Any, eps: float = 1e-12, residual: Any = None) -> Pair:
    h = x if residual is None else x + residual
    rstd = 1 / np.sqrt(h.var(axis=1, keepdims=True) + eps)
    xh = (h - h.mean(axis=1, keepdims=True)) * rstd
    return xh * weight + bias, (xh, rstd, weight, residual)


def layer_norm_backward(saved: Any, dy: Any) -> Grads:
    xh, rstd, weight, residual = saved
    g = dy * weight
    dx = rstd * (g - g.mean(axis=1, keepdims=True) - xh * (g * xh).mean(axis=1, keepdims=True))
    return {"dx": dx, "dweight": (dy * xh).sum(axis=0), "dbias": dy.sum(axis=0), "dresidual": None if residual is None else dx}


def l2_normalize(x: Any, eps: float = 1e-12) -> Pair:
    length = np.sqrt((x * x).sum(axis=1, keepdims=True))
    return x / np.maximum(length, eps), (x, length, eps)


def l2_normalize_backward(saved: Any, dy: Any) -> Grads:
    x, length, eps = saved
    y = x / np.maximum(length, eps)
    along = np.where(length < eps, 0, (y * dy).sum(axis=1, keepdims=True))
    return {"dx": (dy - y * along) / np.maximum(length, eps)}
