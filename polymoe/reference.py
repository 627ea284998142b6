# ruff: noqa: D103 -- polymoe.functional documents these functions; here the formula is the documentation
"""Every operation in a few lines of NumPy: the specification that the kernels are tested against.

Names and signatures are those of :mod:`polymoe.functional`: ``op(...) -> (y, saved)``, ``op_backward(saved,
dy)`` -> a dict from ``d<argument>`` to the gradient. Nothing here is fast, and nothing here calls the
kernels. Extents: B examples, N packed tokens, D columns, S skills, Q heads, T tasks, G groups.
"""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np

Pair = tuple[Any, Any]  # y, saved
Grads = dict[str, Any]  # "d" + argument -> gradient, or None

_erf = np.vectorize(math.erf, otypes=[float])


def add(a: Any, b: Any) -> Pair:
    return a + b, None


def add_backward(saved: Any, dy: Any) -> Grads:
    return {"da": dy, "db": dy}


def multiply(a: Any, b: Any, adapter_ids: Any = None, cu_seqlens: Any = None) -> Pair:
    if a.shape == b.shape and adapter_ids is None:
        return a * b, (a, b, None)
    cu_seqlens = np.array([0, len(a)]) if cu_seqlens is None else cu_seqlens
    adapter_ids = np.zeros(len(cu_seqlens) - 1, int) if adapter_ids is None else adapter_ids
    group = np.repeat(adapter_ids, np.diff(cu_seqlens))  # [N]
    return a * b.reshape(-1, b.shape[-1])[group], (a, b, group)


def multiply_backward(saved: Any, dy: Any) -> Grads:
    a, b, group = saved
    if group is None:
        return {"da": dy * b, "db": dy * a}
    rows = b.reshape(-1, b.shape[-1])
    drows = np.zeros_like(rows)
    np.add.at(drows, group, dy * a)
    return {"da": dy * rows[group], "db": drows.reshape(b.shape)}


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


def relu(x: Any) -> Pair:
    return np.maximum(x, 0), x


def relu_backward(saved: Any, dy: Any) -> Grads:
    return {"dx": dy * (saved > 0)}


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


def silu(x: Any) -> Pair:
    return x / (1 + np.exp(-x)), x


def silu_backward(saved: Any, dy: Any) -> Grads:
    s = 1 / (1 + np.exp(-saved))
    return {"dx": dy * (s + saved * s * (1 - s))}


def layer_norm(
    x: Any,
    weight: Any,
    bias: Any,
    eps: float = 1e-12,
    residual: Any = None,
    inverse: Any = None,  # a matter of memory
) -> Pair:
    h = x if residual is None else x + residual
    rstd = 1 / np.sqrt(h.var(axis=1, keepdims=True) + eps)
    xh = (h - h.mean(axis=1, keepdims=True)) * rstd
    return xh * weight + bias, (xh, rstd, weight, residual)


def layer_norm_backward(saved: Any, dy: Any) -> Grads:
    xh, rstd, weight, residual = saved
    g = dy * weight
    dx = rstd * (g - g.mean(axis=1, keepdims=True) - xh * (g * xh).mean(axis=1, keepdims=True))
    return {
        "dx": dx,
        "dweight": (dy * xh).sum(axis=0),
        "dbias": dy.sum(axis=0),
        "dresidual": None if residual is None else dx,
    }


def rms_norm(x: Any, weight: Any, eps: float = 1e-6, inverse: Any = None) -> Pair:
    rstd = 1 / np.sqrt((x * x).mean(axis=1, keepdims=True) + eps)
    return x * rstd * weight, (x * rstd, rstd, weight)


def rms_norm_backward(saved: Any, dy: Any) -> Grads:
    xh, rstd, weight = saved
    g = dy * weight
    return {"dx": rstd * (g - xh * (g * xh).mean(axis=1, keepdims=True)), "dweight": (dy * xh).sum(axis=0)}


def rope(x: Any, cos: Any, sin: Any, positions: Any) -> Pair:
    half = cos.shape[1]
    a, b = np.moveaxis(x.reshape(len(x), x.shape[1] // (2 * half), 2, half), 2, 0)  # [N, H, d/2] each
    c, s = cos[positions][:, None], sin[positions][:, None]
    return np.concatenate([a * c - b * s, b * c + a * s], axis=2).reshape(x.shape), (cos, sin, positions)


def rope_backward(saved: Any, dy: Any) -> Grads:
    cos, sin, positions = saved
    return {"dx": rope(dy, cos, -sin, positions)[0]}


def l2_normalize(x: Any, eps: float = 1e-12) -> Pair:
    length = np.sqrt((x * x).sum(axis=1, keepdims=True))
    return x / np.maximum(length, eps), (x, length, eps)


def l2_normalize_backward(saved: Any, dy: Any) -> Grads:
    x, length, eps = saved
    y = x / np.maximum(length, eps)
    along = np.where(length < eps, 0, (y * dy).sum(axis=1, keepdims=True))
    return {"dx": (dy - y * along) / np.maximum(length, eps)}


def mix(weights: Any, bank: Any, scale: float = 1.0) -> Pair:
    by_head = np.repeat(weights, bank.shape[2] // weights.shape[1], axis=1)  # [G, D, S]
    return scale * np.einsum("gds,srd->grd", by_head, bank), (weights, bank, scale)


def mix_backward(saved: Any, dy: Any) -> Grads:
    weights, bank, scale = saved
    by_head = (bank.shape[1], weights.shape[1], bank.shape[2] // weights.shape[1])  # r, Q, columns of a head
    dy_q, bank_q = scale * dy.reshape(-1, *by_head), bank.reshape(-1, *by_head)
    dbank = np.einsum("gqs,grqd->srqd", weights, dy_q).reshape(bank.shape)
    return {"dweights": np.einsum("grqd,srqd->gqs", dy_q, bank_q), "dbank": dbank}


def tensor_product(leaves: Any, order: int, d: int, eps: float = 1e-5) -> Pair:
    level, products, of_leaves = np.split(leaves, order, axis=2), [], True
    while len(level) > 1:
        a, b = level[::2], level[1::2]
        v = [
            np.concatenate([column * q for column in np.split(p, p.shape[2], axis=2)], axis=2)
            for p, q in zip(a, b, strict=True)
        ]
        rstd: list[Any] = [None] * len(v)
        if of_leaves or len(v) > 1:  # every product but the last; that of two leaves too
            rstd = [1 / np.sqrt(p.var(axis=(1, 2), keepdims=True) + eps) for p in v]
            v = [(p - p.mean(axis=(1, 2), keepdims=True)) * s for p, s in zip(v, rstd, strict=True)]
        products.append((level, v, rstd))
        level, of_leaves = v, False
    return level[0][..., :d], (d, products)


def tensor_product_backward(saved: Any, dy: Any) -> Grads:
    d, products = saved
    grads = [np.pad(dy, ((0, 0), (0, 0), (0, products[-1][1][0].shape[2] - d)))]
    for level, v, rstds in reversed(products):
        below = []
        for p, q, y, rstd, g in zip(level[::2], level[1::2], v, rstds, grads, strict=True):
            if rstd is not None:
                mean, along = (x.mean(axis=(1, 2), keepdims=True) for x in (g, g * y))
                g = rstd * (g - mean - y * along)
            g = g.reshape(*p.shape, q.shape[2])
            below += [np.einsum("jrab,jrb->jra", g, q), np.einsum("jrab,jra->jrb", g, p)]
        grads = below
    return {"dleaves": np.concatenate(grads, axis=2)}


def dense(x: Any, weight: Any, bias: Any = None) -> Pair:
    return x @ weight.T + (0 if bias is None else bias), (x, weight, bias)


def dense_backward(saved: Any, dy: Any) -> Grads:
    x, weight, bias = saved
    return {"dx": dy @ weight, "dweight": dy.T @ x, "dbias": None if bias is None else dy.sum(0)}


def expert_dense(
    x: Any,  # [N, D], or [N, K, D]
    weight: Any,
    bias: Any,
    ids: Any,  # [G, K]
    weights: Any = None,
    adapter_ids: Any = None,
    cu_seqlens: Any = None,
) -> Pair:
    cu_seqlens = np.array([0, len(x)]) if cu_seqlens is None else cu_seqlens
    adapter_ids = np.zeros(len(cu_seqlens) - 1, int) if adapter_ids is None else adapter_ids
    group = np.repeat(adapter_ids, np.diff(cu_seqlens))  # [N]
    e = ids[group]  # [N, K]
    inputs = np.broadcast_to(x if x.ndim == 3 else x[:, None], (*e.shape, x.shape[-1]))
    z = np.zeros((*e.shape, weight.shape[1]), x.dtype)
    for s, W in enumerate(weight):
        z[e == s] = dense(inputs[e == s], W, None if bias is None else bias[s])[0]
    y = z if weights is None else (weights[group][..., None] * z).sum(axis=1)
    return y, (x, inputs, weight, bias, weights, group, e, z)


def expert_dense_backward(saved: Any, dy: Any) -> Grads:
    x, inputs, weight, bias, weights, group, e, z = saved
    dz, dweights = dy, None
    if weights is not None:
        dz, dweights = weights[group][..., None] * dy[:, None], np.zeros_like(weights)
        np.add.at(dweights, group, (z * dy[:, None]).sum(axis=2))
    dinputs, dweight = np.zeros(inputs.shape, x.dtype), np.zeros_like(weight)
    for s, W in enumerate(weight):
        dinputs[e == s], dweight[s] = dz[e == s] @ W, dz[e == s].T @ inputs[e == s]
    return {
        "dx": dinputs if x.ndim == 3 else dinputs.sum(axis=1),
        "dweight": dweight,
        "dbias": None if bias is None else np.array([dz[e == s].sum(axis=0) for s in range(len(weight))]),
        "dweights": dweights,
    }


def activated(x: Any, activation: str) -> Pair:
    name, *form = activation.split("_")
    y, saved = globals()[name](x, *form)
    return y, (name, saved)


def activated_backward(saved: Any, dy: Any) -> Grads:
    name, of_x = saved
    grads: Grads = globals()[name + "_backward"](of_x, dy)
    return grads


def linear(
    x: Any,
    weight: Any,  # [O, D], a PackedWeight, or None
    bias: Any = None,
    lora_A: Any = None,
    lora_B: Any = None,
    weights: Any = None,
    adapter_ids: Any = None,
    cu_seqlens: Any = None,
    scale: float = 1.0,
    formulation: str = "auto",  # a matter of speed
    mixing: str = "factors",
    ids: Any = None,
    activation: Any = None,
    times: Any = None,
) -> Pair:
    if activation is not None:
        factor = 1 if times is None else times
        f, of_x = activated(x, activation)
        y, saved = linear(
            f * factor,
            weight,
            bias,
            lora_A,
            lora_B,
            weights,
            adapter_ids,
            cu_seqlens,
            scale,
            formulation,
            mixing,
            ids,
        )
        return y, {"linear": saved, "f": f, "of_x": of_x, "times": times}
    weight = weight.unpack() if hasattr(weight, "unpack") else weight
    weight = np.zeros((lora_B.shape[2], x.shape[1])) if weight is None else weight
    y, group = dense(x, weight, bias)[0], None
    if lora_A is not None:
        cu_seqlens = np.array([0, len(x)]) if cu_seqlens is None else cu_seqlens
        adapter_ids = np.zeros(len(cu_seqlens) - 1, int) if adapter_ids is None else adapter_ids
        group = np.repeat(adapter_ids, np.diff(cu_seqlens))  # [N]
        if mixing == "outputs" and weights is not None:
            by_token = weights[group, 0] if ids is None else weights[group]
            by_token_ids = None if ids is None else ids[group]
            y, saved = moe(x, weight, bias, lora_A, lora_B, by_token, by_token_ids, scale)
            return y, (saved, group, weights.shape)
        A, B = (lora_A, lora_B) if weights is None else (mix(weights, lora_A)[0], mix(weights, lora_B)[0])
        for g in np.unique(group):
            y[group == g] += scale * (x[group == g] @ A[g].T) @ B[g]
    return y, (x, weight, lora_A, lora_B, weights, group, scale)


def linear_backward(saved: Any, dy: Any) -> Grads:
    if isinstance(saved, dict):  # activated
        grads, times = linear_backward(saved["linear"], dy), saved["times"]
        df = grads["dx"] if times is None else grads["dx"] * times
        dx = activated_backward(saved["of_x"], df)["dx"]
        return {**grads, "dx": dx, "dtimes": None if times is None else grads["dx"] * saved["f"]}
    if len(saved) == 3:  # outputs
        saved, group, shape = saved
        grads, by_token = moe_backward(saved, dy), np.zeros((shape[0], shape[-1]))
        np.add.at(by_token, group, grads["dweights"])
        return {**grads, "dweights": by_token.reshape(shape)}
    x, weight, lora_A, lora_B, weights, group, scale = saved
    dx, dA, dB, dweights = dy @ weight, None, None, None
    if lora_A is not None:
        A, B = (lora_A, lora_B) if weights is None else (mix(weights, lora_A)[0], mix(weights, lora_B)[0])
        dA, dB = np.zeros_like(A), np.zeros_like(B)
        for g in np.unique(group):
            xg, dyg = x[group == g], scale * dy[group == g]
            dx[group == g] += dyg @ B[g].T @ A[g]
            dA[g], dB[g] = B[g] @ dyg.T @ xg, A[g] @ xg.T @ dyg
        if weights is not None:
            from_A, from_B = mix_backward((weights, lora_A, 1), dA), mix_backward((weights, lora_B, 1), dB)
            dA, dB, dweights = from_A["dbank"], from_B["dbank"], from_A["dweights"] + from_B["dweights"]
    return {"dx": dx, "dlora_A": dA, "dlora_B": dB, "dweights": dweights}


def moe(
    x: Any,
    weight: Any,
    bias: Any,
    lora_A: Any,  # [S, r, D], or [1, r, D] for all experts
    lora_B: Any,
    weights: Any,  # [N, S], or [N, k] with ids
    ids: Any = None,
    scale: float = 1.0,
    formulation: str = "auto",  # a matter of speed
) -> Pair:
    weight = weight.unpack() if hasattr(weight, "unpack") else weight
    weight = np.zeros((lora_B.shape[2], x.shape[1])) if weight is None else weight
    ids = np.broadcast_to(np.arange(len(lora_B)), weights.shape) if ids is None else ids
    w, rows = np.zeros((len(x), len(lora_B))), np.arange(len(x))[:, None]
    np.add.at(w, (rows, ids), weights)  # [N, S]
    y = dense(x, weight, bias)[0]
    for s, B in enumerate(lora_B):
        y += scale * w[:, s, None] * (x @ lora_A[s % len(lora_A)].T) @ B
    return y, (x, weight, lora_A, lora_B, w, (rows, ids), scale)


def moe_backward(saved: Any, dy: Any) -> Grads:
    x, weight, lora_A, lora_B, w, at, scale = saved
    dx, dA, dB, dw = dy @ weight, np.zeros_like(lora_A), np.zeros_like(lora_B), np.zeros_like(w)
    for s, B in enumerate(lora_B):
        A = lora_A[s % len(lora_A)]
        h, e, w_s = x @ A.T, scale * dy @ B.T, w[:, s, None]
        dx += w_s * e @ A
        dA[s % len(lora_A)] += (w_s * e).T @ x
        dB[s] = (w_s * h).T @ (scale * dy)
        dw[:, s] = (h * e).sum(axis=1)
    return {"dx": dx, "dlora_A": dA, "dlora_B": dB, "dweights": dw[at]}


def concat(a: Any, b: Any) -> Pair:
    heads = np.broadcast_to(b[:, None], (*a.shape[:2], b.shape[1]))
    return np.concatenate([a, heads], axis=2), a.shape[2]


def concat_backward(saved: Any, dy: Any) -> Grads:
    return {"da": dy[..., :saved], "db": dy[..., saved:].sum(axis=1)}


def reshape(x: Any, shape: Any) -> Pair:
    return x.reshape(shape), x.shape


def reshape_backward(saved: Any, dy: Any) -> Grads:
    return {"dx": dy.reshape(saved)}


def embedding(ids: Any, table: Any) -> Pair:
    return table[ids], (ids, table)


def embedding_backward(saved: Any, dy: Any) -> Grads:
    ids, table = saved
    dtable = np.zeros_like(table)
    np.add.at(dtable, ids, dy)
    return {"dtable": dtable}


def mean_pool(x: Any, cu_seqlens: Any) -> Pair:
    spans = list(pairwise(cu_seqlens))
    rows = [x[a:b].mean(axis=0) if b > a else np.zeros(x.shape[1]) for a, b in spans]
    return np.array(rows).reshape(len(spans), x.shape[1]), np.diff(cu_seqlens)


def mean_pool_backward(saved: Any, dy: Any) -> Grads:
    return {"dx": np.repeat(dy / np.maximum(saved, 1)[:, None], saved, axis=0)}


def attention_pool(x: Any, query: Any, cu_seqlens: Any, scale: Any = None) -> Pair:
    scale = 1 / math.sqrt(x.shape[1]) if scale is None else scale
    spans = list(pairwise(cu_seqlens))
    w = [_softmax(scale * x[a:b] @ query) for a, b in spans]
    y = np.array([w_b @ x[a:b] for w_b, (a, b) in zip(w, spans, strict=True)])
    return y.reshape(len(spans), x.shape[1]), (x, query, spans, w, scale)


def attention_pool_backward(saved: Any, dy: Any) -> Grads:
    x, query, spans, w, scale = saved
    dx, dquery = np.zeros_like(x), np.zeros_like(query)
    for (a, b), w_b, dy_b in zip(spans, w, dy, strict=True):
        dscore = scale * _softmax_backward(w_b, x[a:b] @ dy_b)
        dx[a:b] = np.outer(w_b, dy_b) + np.outer(dscore, query)
        dquery += dscore @ x[a:b]
    return {"dx": dx, "dquery": dquery}


def task_router(
    logits: Any,
    task_ids: Any,
    noise: Any = None,
    temperature: float = 1.0,
    gate: str = "sigmoid",
    mask: Any = None,
    average_correction: bool = False,
) -> Pair:
    z = logits[task_ids]
    if gate == "l2":
        gates, slopes = z, np.ones_like(z)
    elif gate == "softmax":
        gates = np.exp((z - z.max(axis=2, keepdims=True)) / temperature)
        slopes = gates / temperature
    else:
        z, t = (
            (z, 1.0) if noise is None else ((z + np.log(noise) - np.log1p(-noise)) / temperature, temperature)
        )
        s = 1 / (1 + np.exp(-z))
        gates, slopes = (s > 0.5).astype(s.dtype) if gate == "straight_through" else s, s * (1 - s) / t
    gates, slopes = (gates, slopes) if mask is None else (gates * mask, slopes * mask)
    total = gates.sum(axis=2, keepdims=True) + 1e-12
    if gate == "l2":
        total = np.maximum(np.sqrt((gates * gates).sum(axis=2, keepdims=True)), 1e-12)
    if average_correction:
        total = np.sqrt(np.full_like(total, logits.shape[2] / logits.shape[1]))
    w = gates / total
    # sum_i dw[i] w[i] is taken off along this direction; no gate open: the gradient of the gates themselves
    direction = w if gate == "l2" else np.zeros_like(w) if average_correction else np.ones_like(w)
    slopes = slopes / np.where(gates.any(axis=2, keepdims=True) | average_correction, total, 1)
    return w, (logits, task_ids, w, slopes, direction)


def task_router_backward(saved: Any, dy: Any) -> Grads:
    logits, task_ids, w, slopes, direction = saved
    dlogits = np.zeros_like(logits)
    np.add.at(dlogits, task_ids, slopes * (dy - direction * (dy * w).sum(axis=2, keepdims=True)))
    return {"dlogits": dlogits}


def _softmax(z: Any) -> Any:
    e = np.exp(z - z.max(axis=-1, keepdims=True, initial=-np.inf))
    return e / e.sum(axis=-1, keepdims=True)


def _softmax_backward(w: Any, dw: Any) -> Any:
    return w * (dw - (dw * w).sum(axis=-1, keepdims=True))


def softmax_router(logits: Any, temperature: float = 1.0) -> Pair:
    w = _softmax(logits / temperature)
    return w, (w, temperature)


def softmax_router_backward(saved: Any, dy: Any) -> Grads:
    w, temperature = saved
    return {"dlogits": _softmax_backward(w, dy) / temperature}


def topk_router(logits: Any, k: int) -> Pair:
    ids = np.argsort(-logits, axis=1, kind="stable")[:, :k]  # ties: lower index first
    w = _softmax(np.take_along_axis(logits, ids, axis=1))
    return w, (w, ids, logits.shape)


def topk_router_backward(saved: Any, dy: Any) -> Grads:
    w, ids, shape = saved
    dlogits = np.zeros(shape)
    np.put_along_axis(dlogits, ids, _softmax_backward(w, dy), axis=1)
    return {"dlogits": dlogits}


def balance_loss(logits: Any, ids: Any) -> Pair:
    p, (n, s) = _softmax(logits), logits.shape
    f = np.bincount(ids.ravel(), minlength=s) / max(ids.size, 1)
    return np.asarray(s * (f * p.sum(axis=0)).sum() / max(n, 1)), (p, s * f / max(n, 1))


def balance_loss_backward(saved: Any, dy: Any) -> Grads:
    p, slope = saved
    return {"dlogits": dy * _softmax_backward(p, slope)}


def ibp_loss(logits: Any) -> Pair:
    z = logits.reshape(len(logits), math.prod(logits.shape[1:]))
    used, n = z > 0, len(z)
    m = [int(users) for users in used.sum(axis=0)]
    alike = Counter(column.tobytes() for column in used.T if column.any())
    loss = sum(math.lgamma(k + 1) for k in alike.values())
    return np.asarray(loss - sum(math.lgamma(n - x + 1) + math.lgamma(x) for x in m if x)), (logits, m)


def ibp_loss_backward(saved: Any, dy: Any) -> Grads:
    logits, m = saved
    digamma = np.cumsum([0, *(1 / np.arange(1, len(logits) + 1))])  # of n + 1, plus Euler's constant
    slope = np.array([digamma[len(logits) - x] - digamma[x - 1] if x else 0 for x in m])
    p = 1 / (1 + np.exp(-logits))
    return {"dlogits": dy * p * (1 - p) * slope.reshape(logits.shape[1:])}


def cross_entropy(
    logits: Any, labels: Any, starts: Any = None, ends: Any = None, weights: Any = None
) -> Pair:
    rows, columns = np.arange(len(labels)), np.arange(logits.shape[1])
    starts = np.zeros_like(labels) if starts is None else starts
    ends = np.full_like(labels, logits.shape[1]) if ends is None else ends
    outside = (columns < starts[:, None]) | (columns >= ends[:, None])
    x = np.where(outside, -np.inf, logits)
    top = x.max(axis=1, keepdims=True)
    p = np.exp(x - top)
    per_example = np.log(p.sum(axis=1)) + top[:, 0] - logits[rows, labels]
    w = np.ones(len(labels)) if weights is None else weights
    w = w / w.sum() if w.sum() else w * 0
    onehot = columns == labels[:, None]
    return np.asarray((w * per_example).sum()), (p / p.sum(axis=1, keepdims=True) - onehot) * w[:, None]


def cross_entropy_backward(saved: Any, dy: Any) -> Grads:
    return {"dlogits": saved * dy}


def lm_loss(x: Any, weight: Any, labels: Any, weights: Any = None) -> Pair:
    loss, dlogits = cross_entropy(x @ weight.T, labels, weights=weights)
    return loss, dlogits @ weight


def lm_loss_backward(saved: Any, dy: Any) -> Grads:
    return {"dx": saved * dy}


def mse(predictions: Any, targets: Any, weights: Any = None) -> Pair:
    w = np.ones(len(targets)) if weights is None else weights
    w = w / w.sum() if w.sum() else w * 0
    return np.asarray((w * (predictions - targets) ** 2).sum()), 2 * w * (predictions - targets)


def mse_backward(saved: Any, dy: Any) -> Grads:
    return {"dpredictions": saved * dy}


def attention(
    q: Any,
    k: Any,
    v: Any,
    cu_seqlens: Any,
    n_heads: int,
    scale: Any = None,
    causal: bool = False,
    n_kv_heads: Any = None,
    cu_seqlens_k: Any = None,
    key_lengths: Any = None,
    position_bias: Any = None,
) -> Pair:
    out, hd = np.zeros_like(q), q.shape[1] // n_heads
    scale = 1 / math.sqrt(hd) if scale is None else scale
    share = n_heads // (n_kv_heads or n_heads)  # heads of q for one of k and v
    starts = np.asarray(cu_seqlens if cu_seqlens_k is None else cu_seqlens_k)
    lengths = np.diff(starts) if key_lengths is None else key_lengths
    probabilities = []
    for (a, b), first, n_keys in zip(pairwise(cu_seqlens), starts, lengths, strict=False):
        if a == b:
            continue
        for h in range(n_heads):
            at = slice(a, b), slice(h * hd, (h + 1) * hd)
            kv = slice(first, first + n_keys), slice(h // share * hd, (h // share + 1) * hd)
            x = scale * q[at] @ k[kv].T
            if position_bias is not None:
                behind = np.arange(n_keys) - (np.arange(n_keys - (b - a), n_keys)[:, None])
                P = position_bias.shape[1] // 2
                x = x + position_bias[h, P + np.clip(behind, -P, P)]
            x = np.where(np.triu(np.ones(x.shape, bool), 1 + n_keys - (b - a)), -np.inf, x) if causal else x
            p = np.exp(x - x.max(axis=1, keepdims=True))
            p = p / p.sum(axis=1, keepdims=True)
            out[at] = p @ v[kv]
            probabilities.append((at, kv, p))
    return out, (q, k, v, scale, probabilities)


def attention_backward(saved: Any, dy: Any) -> Grads:
    q, k, v, scale, probabilities = saved
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    for at, kv, p in probabilities:
        dp = dy[at] @ v[kv].T
        ds = scale * p * (dp - (p * dp).sum(axis=1, keepdims=True))
        dq[at] = ds @ k[kv]
        dk[kv] += ds.T @ q[at]
        dv[kv] += p.T @ dy[at]
    return {"dq": dq, "dk": dk, "dv": dv}


def adamw_step(
    data: Any,
    grad: Any,
    m: Any,
    v: Any,
    offsets: Any,
    lengths: Any,
    lr: Any,
    weight_decay: Any,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    step: int = 1,
    grad_scale: float = 1.0,
) -> None:
    for offset, length, rate, decay in zip(offsets, lengths, lr, weight_decay, strict=True):
        at = slice(offset, offset + length)
        g = grad[at] * grad_scale
        m[at] = beta1 * m[at] + (1 - beta1) * g
        v[at] = beta2 * v[at] + (1 - beta2) * g * g
        m_hat, v_hat = m[at] / (1 - beta1**step), v[at] / (1 - beta2**step)
        data[at] = data[at] * (1 - rate * decay) - rate * m_hat / (np.sqrt(v_hat) + eps)


def global_norm(grad: Any, offsets: Any, lengths: Any) -> float:
    spans = zip(offsets, lengths, strict=True)
    return math.sqrt(sum(float(np.sum(np.square(grad[a : a + n], dtype=float))) for a, n in spans))
