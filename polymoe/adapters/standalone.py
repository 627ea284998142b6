"""An adapted linear layer alone, in somebody's own loop: explicit forward and backward on NumPy arrays."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from polymoe import functional as F
from polymoe.adapters.config import AdapterConfig
from polymoe.adapters.layers import AdapterLayer, make_layer, site_of
from polymoe.adapters.methods import configure
from polymoe.batch import Batch, TaskRegistry
from polymoe.nn import Linear, Module
from polymoe.tape import Node, Tape


class LayerSaved(NamedTuple):
    """What :meth:`AdaptedLinear.forward` keeps: the tape and its ends, the shape of x; under a mask, which
    tokens it kept and what the base layer's backward needs."""

    tape: Tape
    x: Node
    y: Any
    shape: tuple[int, ...]
    kept: np.ndarray | None
    base: Any


class AdaptedLinear(Module):
    """A frozen linear layer with its adapter, for use in any loop over NumPy arrays.

        layer = polymoe.adapt_linear(weight, bias, "poly", n_tasks=3).train()
        y, saved = layer.forward(x, task_ids)
        dx = layer.backward(saved, dy)              # and adds to the .grad of layer.parameters()

    ``tasks`` are the known tasks, ``seed`` keys the noise of the router and dropout.
    """

    def __init__(self, linear: Linear, adapter: AdapterLayer, tasks: TaskRegistry, seed: int) -> None:
        self.linear, self.adapter = linear, adapter
        self.tasks, self.seed, self.step = tasks, seed, 0

    def forward(
        self,
        x: Any,
        task_ids: Any = None,
        cu_seqlens: Any = None,
        attention_mask: Any = None,
        step: int | None = None,
        example_ids: Any = None,
    ) -> tuple[np.ndarray, LayerSaved]:
        """y of x, and what :meth:`backward` needs.

        Args:
            x: [N, D] with ``cu_seqlens``, else [B, ..., D]; [B, D] are B examples of one token. The layer's
                dtype, in any memory order.
            task_ids: [B] ids or names, or one for all. Not needed where the router does not go by task.
            cu_seqlens: [B + 1], where the examples of packed tokens start, and N.
            attention_mask: [B, ...] of 0 and 1 beside x [B, ..., D]. A masked token belongs to no
                example: the adapter does not see it, and y there is what the base layer gives.
            step: keys the noise in training; without it, calls in training are counted.
            example_ids: [B], key the noise of each example; the order in the batch without them.

        Returns:
            y, of the shape of x but for its last extent O.

        Raises:
            TypeError: another dtype than the layer's, ids that are no integers.
            ValueError: shapes that do not fit, missing task ids.
            KeyError, IndexError: an unknown task name or id; the message lists the known ones.
        """
        x = np.asarray(x)
        if x.dtype != self.linear.weight.compute_dtype:
            raise TypeError(f"x: expected dtype {self.linear.weight.compute_dtype}, got {x.dtype}")
        if x.ndim < 2 or x.shape[-1] != self.linear.in_features:
            raise ValueError(f"x: expected shape (B, ..., {self.linear.in_features}), got {x.shape}")
        kept = None
        if cu_seqlens is not None:
            if x.ndim != 2 or attention_mask is not None:
                raise ValueError(
                    f"cu_seqlens: expected x (N, D) and no attention_mask beside it, got x {x.shape}"
                )
            offsets = np.asarray(cu_seqlens)
        else:
            offsets, kept = _offsets(x, attention_mask)
        rows = np.ascontiguousarray(x).reshape(-1, x.shape[-1])
        batch = self._batch(offsets, task_ids, example_ids, step)
        node = Node(rows if kept is None else rows[kept])
        with Tape() as recorded:
            packed = self.adapter(node, self.linear, batch)
        y, base = packed.data, None
        if kept is not None:
            y, base = F.linear(rows, self.linear.weight, self.linear.bias)
            y[kept] = packed.data
        y = y.reshape(*x.shape[:-1], self.linear.out_features)
        return y, LayerSaved(recorded, node, packed, x.shape, kept, base)

    def _batch(self, offsets: np.ndarray, task_ids: Any, example_ids: Any, step: int | None) -> Batch:
        if offsets.ndim != 1 or offsets.size == 0 or offsets.dtype.kind not in "iu":
            raise ValueError(
                f"cu_seqlens: expected B + 1 integers, got shape {offsets.shape}, {offsets.dtype}"
            )
        n_examples = len(offsets) - 1
        if self.adapter.router.needs_tasks or (task_ids is not None and len(self.tasks)):
            task_ids = self.tasks.check(task_ids, n_examples)
        if example_ids is not None:
            example_ids = np.asarray(example_ids, dtype=np.int64)
            if example_ids.shape != (n_examples,):
                raise ValueError(f"example_ids: expected shape ({n_examples},), got {example_ids.shape}")
        if step is None:
            step = self.step
            self.step += self.training
        return Batch(
            offsets.astype(np.int64), task_ids=task_ids, example_ids=example_ids, seed=self.seed, step=step
        )

    def backward(self, saved: LayerSaved, dy: Any) -> np.ndarray:
        """dx, of the shape of x, for the gradient ``dy`` of y; adds those of the parameters to their
        ``.grad``.

        The router's auxiliary losses (``saved.tape.auxiliary_loss()``) are part of the loss, with weight 1. A
        forward can be gone back through once: RuntimeError after that. ValueError for another shape than
        y's.
        """
        dy = np.asarray(dy, dtype=self.linear.weight.compute_dtype)
        expected = (*saved.shape[:-1], self.linear.out_features)
        if dy.shape != expected:
            raise ValueError(f"dy: expected shape {expected}, got {dy.shape}")
        if not saved.tape.records:
            raise RuntimeError("saved: expected a forward that was not gone back through, got a used one")
        dy = np.ascontiguousarray(dy).reshape(-1, expected[-1])
        saved.tape.backward(saved.y, dy if saved.kept is None else dy[saved.kept])
        dx: Any = saved.x.grad
        if saved.kept is not None:
            dx = F.linear_backward(saved.base, dy, {"x"}).dx
            dx[saved.kept] = saved.x.grad
        return np.reshape(dx, saved.shape)


def _offsets(x: np.ndarray, attention_mask: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """cu_seqlens of x [B, ..., D], and which tokens are kept (None: all)."""
    n_examples, tokens = x.shape[0], int(np.prod(x.shape[1:-1]))
    if attention_mask is None:
        return np.arange(n_examples + 1, dtype=np.int64) * tokens, None
    mask = np.asarray(attention_mask)
    if mask.shape != x.shape[:-1]:
        raise ValueError(f"attention_mask: expected shape {x.shape[:-1]}, got {mask.shape}")
    if not np.isin(mask, (0, 1)).all():
        raise ValueError("attention_mask: expected zeros and ones, got other values")
    lengths = mask.astype(bool).reshape(n_examples, -1).sum(axis=1)
    return np.concatenate([[0], np.cumsum(lengths)]), np.flatnonzero(mask)


def adapt_linear(
    weight: Any,
    bias: Any = None,
    method: str | AdapterConfig = "poly",
    tasks: Any = (),
    *,
    n_tasks: int | None = None,
    name: str = "linear",
    seed: int = 0,
    **overrides: Any,
) -> AdaptedLinear:
    """A frozen linear layer (``weight`` [O, D], ``bias`` [O] or None) with an adapter of the given method.

    ``tasks``: their names; or ``n_tasks`` of them, called task_0, task_1 ... ``overrides``: fields of
    :class:`AdapterConfig`. ``name`` and ``seed`` key the initial values. The layer is in evaluation until
    ``.train()``.

    >>> import numpy as np
    >>> layer = adapt_linear(np.eye(4, dtype=np.float32), method="poly", n_tasks=2, r=2)
    >>> y, saved = layer.forward(np.ones((3, 5, 4), np.float32), task_ids=[0, 1, 1])
    >>> y.shape
    (3, 5, 4)
    """
    if n_tasks is not None:
        if tasks:
            raise TypeError("n_tasks: expected names or a number of tasks, got both")
        tasks = [f"task_{i}" for i in range(n_tasks)]
    registry = TaskRegistry(tasks)
    linear = Linear(weight, bias)
    site = site_of(linear, name, len(registry), seed)
    adapter = make_layer(configure(method, **overrides), registry, site)
    return AdaptedLinear(linear, adapter, registry, seed)
