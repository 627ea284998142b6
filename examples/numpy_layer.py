"""A Poly layer in your own loop, with NumPy alone: two tasks learn from one frozen layer.

Needs: pip install .
"""

import numpy as np

import polymoe

rng = np.random.default_rng(0)
weight = rng.normal(size=(16, 32)).astype(np.float32)
layer = polymoe.adapt_linear(weight, method="poly", n_tasks=2, r=4, noise="off").train()
x = rng.normal(size=(8, 5, 32)).astype(np.float32)  # [B, L, D]: 8 examples of 5 tokens
task_ids = [0, 1] * 4
target = x @ weight.T + np.where(np.array(task_ids)[:, None, None] == 0, 1.0, -1.0)
for step in range(200):
    y, saved = layer.forward(x, task_ids)
    layer.backward(saved, (y - target) / y.size)  # dx, and adds to every parameter's .grad
    for _, p in layer.named_parameters():
        p.data -= 20.0 * p.grad
        p.grad[...] = 0
    if step % 50 == 0 or step == 199:
        print(f"step {step:3d}  loss {np.mean((y - target) ** 2):.4f}")
