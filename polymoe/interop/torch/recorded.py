"""What ran on a tape of ours, as one node of torch's graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from polymoe.parameters import Parameter
from polymoe.tape import Gradient, Node, Tape, data_of

LARGE = 1 << 14
"""Bytes from which an array that backward needs is handed to torch, which knows when to drop it."""


class Leaf(Parameter):
    """A parameter whose memory is torch's. Its gradient goes to torch, and is added up there."""

    __slots__ = ()

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.gradient = Gradient()


class Held:
    """A parameter of torch, in ``module`` under ``name``, and the ``leaf`` that stands for it here."""

    def __init__(self, leaf: Leaf, module: torch.nn.Module, name: str) -> None:
        self.leaf, self.module, self.name = leaf, module, name
        self._seen: tuple[torch.Tensor | None, int] = None, 0

    def tensor(self) -> torch.nn.Parameter:
        """What torch has there now; the leaf gets its memory. TypeError for another dtype than float32."""
        tensor = self.module._parameters[self.name]
        if tensor is not self._seen[0] or tensor is None or tensor.data_ptr() != self._seen[1]:
            if tensor is None or tensor.dtype != torch.float32 or tensor.device.type != "cpu":
                raise TypeError(f"{self.name}: expected a float32 parameter on the CPU, got {_kind(tensor)}")
            self.leaf.data = tensor.detach().numpy()
            self._seen = tensor, tensor.data_ptr()
        return tensor


def record(
    run: Callable[..., Any], inputs: Sequence[torch.Tensor], held: Sequence[Held], rows: bool = True
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``run(*inputs)`` and the sum of its auxiliary losses (None without any), differentiable once.

    ``inputs``: float32 and contiguous; of the first, [..., D], ``run`` sees the rows [N, D]. ``rows``: what
    it makes are as many, [N, O], and come back as [..., O]. ``held``: the parameters that it reads.
    """
    tensors = [*inputs, *[one.tensor() for one in held]]
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor.requires_grad:
                y, aux = _Recorded.apply(run, held, len(inputs), rows, *tensors)
                return y, aux
    return _out(data_of(run(*_arrays(inputs))), inputs[0], rows), None


def _out(y: np.ndarray, x: torch.Tensor, rows: bool) -> torch.Tensor:
    return torch.from_numpy(y.reshape(*x.shape[:-1], y.shape[1]) if rows else y)


def _arrays(tensors: Sequence[torch.Tensor]) -> list[np.ndarray]:
    arrays = [t.detach().numpy() for t in tensors]
    arrays[0] = arrays[0].reshape(-1, arrays[0].shape[-1])
    return arrays


class _Recorded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Any, held: Any, n_inputs: int, rows: bool, *tensors: torch.Tensor) -> Any:
        arrays, needs = _arrays(tensors[:n_inputs]), ctx.needs_input_grad[4:]
        nodes = [Node(a) if need else a for a, need in zip(arrays, needs, strict=False)]
        for one, need in zip(held, needs[n_inputs:], strict=True):
            one.leaf.trainable = need
            arrays.append(one.leaf.data)
        with Tape() as tape:
            y = run(*nodes)
        ctx.records, own = _lend(tape.records, arrays)
        ctx.nodes, ctx.y, ctx.losses = (*nodes, *[one.leaf for one in held]), y, tape.losses
        ctx.save_for_backward(*tensors, *own)
        out = _out(data_of(y), tensors[0], rows)
        for node in (y, *nodes):
            if isinstance(node, Node) and node.data.nbytes >= LARGE:
                node.data = _hollow(node.data.shape)
        return out, torch.tensor(tape.auxiliary_loss()) if tape.losses else None

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, dy: torch.Tensor, daux: torch.Tensor | None) -> Any:
        # This raises where somebody has written to one of them since, and recomputes under checkpointing.
        saved = ctx.saved_tensors
        tape = Tape()
        tape.records, tape.losses = _give_back(ctx.records, _arrays(saved)), ctx.losses
        grads: list[torch.Tensor | None] = []
        try:
            if isinstance(ctx.y, Node):
                dy_rows = dy.contiguous().numpy().reshape(ctx.y.shape)
                tape.backward(ctx.y, dy_rows, 0.0 if daux is None else float(daux))
            for node, tensor in zip(ctx.nodes, saved, strict=False):
                grad = node.grad if isinstance(node, Node) else None
                grads.append(None if grad is None else torch.from_numpy(grad.reshape(tensor.shape)))
        finally:
            for node in ctx.nodes:
                if isinstance(node, Node):
                    node.grad = None
        return None, None, None, None, *grads


@lru_cache(maxsize=1024)
def _hollow(shape: tuple[int, ...]) -> np.ndarray:
    """An array of this shape that takes no memory: all that a node still needs is its shape."""
    return np.broadcast_to(np.zeros((), np.float32), shape)


Lent = tuple[Any, type[Any] | None, list[Any], list[tuple[int, int]]]
"""A record; the type of what it saved, None for a value alone; its values; and (value, array) that torch
keeps."""


def _lend(records: list[Any], arrays: list[np.ndarray]) -> tuple[list[Lent], list[torch.Tensor]]:
    """The records without ``arrays``, which torch keeps, and without large ones of their own; the latter."""
    places = {id(array): i for i, array in enumerate(arrays)}
    own: list[torch.Tensor] = []
    lent: list[Lent] = []
    for record in records:
        saved = record.saved
        many = hasattr(saved, "_make")
        values, kept = list(saved) if many else [saved], []
        for i, value in enumerate(values):
            if type(value) is np.ndarray:
                place = places.get(id(value))
                if place is None and value.nbytes >= LARGE and value.flags.writeable:
                    place = places[id(value)] = len(arrays) + len(own)
                    own.append(torch.from_numpy(value))
                if place is not None:
                    values[i] = None
                    kept.append((i, place))
        lent.append((record._replace(saved=None), type(saved) if many else None, values, kept))
    return lent, own


def _give_back(lent: list[Lent], arrays: list[np.ndarray]) -> list[Any]:
    records = []
    for record, kind, values, kept in lent:
        values = values.copy()
        for i, place in kept:
            values[i] = arrays[place]
        records.append(record._replace(saved=values[0] if kind is None else kind(*values)))
    return records


def _kind(tensor: torch.Tensor | None) -> str:
    return "None" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"
