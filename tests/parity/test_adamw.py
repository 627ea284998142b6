"""AdamW step by step beside torch.optim.AdamW."""

from __future__ import annotations

import numpy as np
import pytest

from polymoe import functional as F

torch = pytest.importorskip("torch", reason="compares with torch, which is not installed")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ten_steps_equal_torch(dtype: str) -> None:
    rng = np.random.default_rng(0)
    sizes, lr, decay = [1000, 17, 1], [1e-2, 0.3, 1e-3], [0.0, 0.1, 0.5]
    data = rng.normal(size=sum(sizes)).astype(dtype)
    m, v = np.zeros_like(data), np.zeros_like(data)
    offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    parameters = [torch.tensor(data[a : a + n]) for a, n in zip(offsets, sizes, strict=True)]
    groups = [
        {"params": [p], "lr": a, "weight_decay": b} for p, a, b in zip(parameters, lr, decay, strict=True)
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-6, foreach=False)
    for step in range(1, 11):
        grad = rng.normal(size=data.shape).astype(dtype)
        for p, a, n in zip(parameters, offsets, sizes, strict=True):
            p.grad = torch.tensor(grad[a : a + n])
        optimizer.step()
        F.adamw_step(data, grad, m, v, offsets, sizes, lr, decay, 0.9, 0.98, 1e-6, step)
    want = np.concatenate([p.numpy() for p in parameters])
    tol = 3e-6 if dtype == "float32" else 1e-14
    np.testing.assert_allclose(data, want, rtol=tol, atol=tol)
    moments = [optimizer.state[p] for p in parameters]
    np.testing.assert_allclose(m, np.concatenate([s["exp_avg"].numpy() for s in moments]), rtol=tol, atol=tol)
    np.testing.assert_allclose(
        v, np.concatenate([s["exp_avg_sq"].numpy() for s in moments]), rtol=tol, atol=tol
    )
