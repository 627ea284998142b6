"""What ran on a tape of ours, as one node of torch's graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from polymoe.nn import Parameter
from polymoe.tape import Node, Tape, data_of

LARGE = 1 << 14
"""Bytes from which an array that backward needs is handed to torch, which knows when to drop it."""


class Leaf(Parameter):
    """A parameter whose memory is torch's. Its gradient goes to torch, and is added up there."""

    __slots__ = ()

    accumulate = Node.accumulate


def record(
    run: Callable[..., Any],
    inputs: Sequence[torch.Tensor],
    leaves: Sequence[Leaf],
    parameters: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``run(*inputs)`` and the sum of its auxiliary losses (None without any), differentiable once.

    ``inputs``: float32 and contiguous; of the first, [..., D], ``run`` sees the rows [N, D].
    ``parameters``: what torch knows the ``leaves`` by, which ``run`` reads.
    """
    if torch.is_grad_enabled() and any(t.requires_grad for t in (*inputs, *parameters)):
        y, aux = _Recorded.apply(run, leaves, len(inputs), *inputs, *parameters)
        return y, aux
    for leaf, parameter in zip(leaves, parameters, strict=True):
        leaf.data = parameter.detach().numpy()
    return torch.from_numpy(data_of(run(*_arrays(inputs)))), None


def _arrays(tensors: Sequence[torch.Tensor]) -> list[np.ndarray]:
    first, *others = (t.detach().numpy() for t in tensors)
    return [first.reshape(-1, first.shape[-1]), *others]


class _Recorded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Any, leaves: Any, n_inputs: int, *tensors: torch.Tensor) -> Any:
        arrays, needs = _arrays(tensors), ctx.needs_input_grad[3:]
        nodes = [Node(a) if need else a for a, need in zip(arrays[:n_inputs], needs, strict=False)]
        for leaf, array, need in zip(leaves, arrays[n_inputs:], needs[n_inputs:], strict=True):
            leaf.data, leaf.trainable = array, need
        with Tape() as tape:
            y = run(*nodes)
        ctx.records, own = _lend(tape.records, arrays)
        ctx.nodes, ctx.y, ctx.losses = (*nodes, *leaves), y, tape.losses
        ctx.save_for_backward(*tensors, *own)
        out = torch.from_numpy(data_of(y))
        for node in (y, *nodes, *(record.output for record in ctx.records)):
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
        nodes = [node if isinstance(node, Node) else None for node in ctx.nodes]
        try:
            if isinstance(ctx.y, Node):
                tape.backward(ctx.y, dy.contiguous().numpy(), 0.0 if daux is None else float(daux))
            grads = [None if node is None or node.grad is None else node.grad for node in nodes]
        finally:
            for node in nodes:
                if node is not None:
                    node.grad = None
        return (
            None,
            None,
            None,
            *(
                None if grad is None else torch.from_numpy(grad).view(tensor.shape)
                for grad, tensor in zip(grads, saved, strict=False)
            ),
        )


@lru_cache(maxsize=1024)
def _hollow(shape: tuple[int, ...]) -> np.ndarray:
    """An array of this shape that takes no memory: all that a node still needs is its shape."""
    return np.broadcast_to(np.zeros((), np.float32), shape)


class _Lent:
    """The place of an array that torch keeps."""

    __slots__ = ("place",)

    def __init__(self, place: int) -> None:
        self.place = place


def _lend(records: list[Any], arrays: list[np.ndarray]) -> tuple[list[Any], list[torch.Tensor]]:
    """The records without ``arrays``, which torch keeps, and without large ones of their own; the latter."""
    places = {id(array): i for i, array in enumerate(arrays)}
    own: list[torch.Tensor] = []

    def lend(value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        if id(value) not in places:
            if value.nbytes < LARGE or not value.flags.writeable:
                return value
            places[id(value)] = len(arrays) + len(own)
            own.append(torch.from_numpy(value))
        return _Lent(places[id(value)])

    return [record._replace(saved=_each(lend, record.saved)) for record in records], own


def _give_back(records: list[Any], arrays: list[np.ndarray]) -> list[Any]:
    def give(value: Any) -> Any:
        return arrays[value.place] if isinstance(value, _Lent) else value

    return [record._replace(saved=_each(give, record.saved)) for record in records]


def _each(change: Callable[[Any], Any], saved: Any) -> Any:
    """What an operation saved, a NamedTuple or one value, with all values changed."""
    return type(saved)._make(map(change, saved)) if hasattr(saved, "_make") else change(saved)
