"""Linear layers that read the same x: one pass stages it for all of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import wraps
from types import SimpleNamespace
from typing import Any

import numpy as np

from polymoe import functional as F
from polymoe.tape import operations
from polymoe.tape.record import (
    Deferred,
    Gradient,
    Node,
    Record,
    current_tape,
    data_of,
    gradients_of,
    whole_of,
)

Layer = dict[str, Any]
"""Arguments of :func:`linear` but x."""

FEW = 32
"""Rows of x whose staging costs less than to note who wants them: a step of writing a text."""

MOST = 8
"""Layers of one pass."""

ARGUMENTS = tuple(inspect.signature(F.linear).parameters)[1:]
READING = {"activation", "times"}
"""Those that say how x is read, for this layer alone."""


class Shared(Deferred):
    """x within :func:`together`: :func:`linear` notes what is asked of it, and computes that when one of the
    results is read. Every other function gets x."""

    __slots__ = ("asked", "x")

    def __init__(self, x: Any) -> None:
        self.x = whole_of(x)
        self.asked: list[Product] = []

    @property
    def shape(self) -> tuple[int, ...]:
        """Of x."""
        return tuple(self.x.shape)

    @property
    def whole(self) -> Any:
        """x"""
        return self.x

    def compute(self) -> None:
        """All that was asked for so far, as many in one pass as it takes."""
        asked, self.asked = self.asked, []
        for start in range(0, len(asked), MOST):
            some = asked[start : start + MOST]
            for product, y in zip(some, linears(self.x, [product.layer for product in some]), strict=True):
                product.y = y


class Product(Deferred):
    """What a layer makes of a :class:`Shared` x."""

    __slots__ = ("layer", "of", "y")

    def __init__(self, of: Shared, layer: Layer) -> None:
        self.of, self.layer = of, layer
        self.y: Any = None
        of.asked.append(self)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the value."""
        return tuple(self.whole.shape)

    @property
    def whole(self) -> Any:
        """The value itself."""
        if self.y is None:
            self.of.compute()
        return self.y


class _Gradients:
    """Gradients of several values, as one output of a record; None where nobody has one yet."""

    __slots__ = ("gradients",)

    def __init__(self, gradients: list[Gradient]) -> None:
        self.gradients = gradients

    @property
    def grad(self) -> list[np.ndarray | None] | None:
        """A gradient for each value that has one."""
        grads = [gradient.grad for gradient in self.gradients]
        return None if all(grad is None for grad in grads) else grads

    def clear(self, keep: Gradient | None) -> None:
        """But for that of ``keep``."""
        for gradient in self.gradients:
            if gradient is not keep:
                gradient.grad = None


def together(x: Any, products: Callable[[Any], Sequence[Any]]) -> list[Any]:
    """``products(x)``, a sequence of values, where the :func:`linear` of the same x are computed in one pass.

    >>> import numpy as np
    >>> x, w = np.ones((2, 3), np.float32), np.eye(3, dtype=np.float32)
    >>> q, k = together(x, lambda x: (linear(x, w), linear(x, 2 * w)))
    >>> float(k[0, 0])
    2.0
    """
    alone = current_tape() is None and len(data_of(x)) < FEW
    return [whole_of(y) for y in products(x if alone else Shared(x))]


@wraps(operations.linear)
def linear(x: Any, *args: Any, **kwargs: Any) -> Any:
    """As below; of a shared x it is noted first."""
    if not isinstance(x, Shared):
        return operations.linear(x, *args, **kwargs)
    layer = dict(zip(ARGUMENTS, args, strict=False)) | kwargs
    if len(layer) < len(args) + len(kwargs) or not READING.isdisjoint(layer):
        return operations.linear(x.x, *args, **kwargs)  # by itself, or it says what is wrong
    return Product(x, layer)


def linears(x: Any, layers: Sequence[Layer]) -> list[Any]:
    """:func:`linear` of x for each of the layers, which are its other arguments, recorded as one."""
    if len(layers) == 1:
        return [operations.linear(x, **layers[0])]
    layers = [{name: whole_of(value) for name, value in layer.items()} for layer in layers]
    found = [{name: data_of(value) for name, value in layer.items()} for layer in layers]
    ys, saved = F.linears(data_of(x), found)
    tape = current_tape()
    trained = [gradients_of(layer) for layer in layers]
    reaches = gradients_of({"x": x})
    if tape is None or not (reaches or any(trained)):
        return ys
    recorded = [i for i in range(len(layers)) if reaches or trained[i]]
    outputs: list[Any] = list(ys)
    for i in recorded:
        outputs[i] = Node(ys[i])
    inputs = dict(reaches)
    for i in recorded:
        inputs |= {f"{name}_{i}": gradient for name, gradient in trained[i].items()}

    def backward(
        kept: list[Any], dys: list[np.ndarray | None], onto: np.ndarray | None = None
    ) -> SimpleNamespace:
        at = [j for j, dy in enumerate(dys) if dy is not None]
        needs = [{*reaches, *trained[recorded[j]]} for j in at]
        grads = F.linears_backward([kept[j] for j in at], [dys[j] for j in at], needs, onto)
        named = dict.fromkeys("d" + name for name in inputs)
        for j, of_layer in zip(at, grads, strict=True):
            i = recorded[j]
            named |= {f"d{name}_{i}": getattr(of_layer, "d" + name) for name in trained[i]}
        return SimpleNamespace(**named | {"dx": grads[0].dx})

    output = _Gradients([outputs[i].gradient for i in recorded])
    kept = [saved[i] for i in recorded]
    tape.records.append(Record(output, kept, backward, inputs, False, True))
    return outputs
