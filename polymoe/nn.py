"""The module tree: modules with Hugging Face's dotted names.

Modules are written forward only, with the operations of :mod:`polymoe.tape`. A frozen weight is a plain array
or a :class:`~polymoe.functional.PackedWeight`; only a :class:`~polymoe.parameters.Parameter` is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np

from polymoe import tape
from polymoe.batch import Batch
from polymoe.functional import PackedWeight
from polymoe.functional.linear import Activation
from polymoe.parameters import Parameter
from polymoe.tape import Node


class Module:
    """A node of the module tree. Children are attributes that are modules, or lists or dicts of modules."""

    training: bool = False

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Direct children with their names; entries of lists and dicts as ``attribute.key``."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, list | tuple):
                yield from ((f"{name}.{i}", v) for i, v in enumerate(value) if isinstance(v, Module))
            elif isinstance(value, dict):
                yield from ((f"{name}.{k}", v) for k, v in value.items() if isinstance(v, Module))

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module and all below it, with dotted names, depth first. A module that stands in several
        places is named by the first."""
        met: set[int] = set()

        def walk(module: Module, path: str) -> Iterator[tuple[str, Module]]:
            if id(module) not in met:
                met.add(id(module))
                yield path, module
                for name, child in module.named_children():
                    yield from walk(child, f"{path}.{name}" if path else name)

        return walk(self, prefix)

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """All parameters below this module with dotted names."""
        for path, module in self.named_modules(prefix):
            for name, value in vars(module).items():
                if isinstance(value, Parameter):
                    yield (f"{path}.{name}" if path else name), value

    def get_submodule(self, name: str) -> Module:
        """The module at a dotted name; KeyError when there is none."""
        for child_name, child in self.named_children() if name else ():
            if name == child_name:
                return child
            if name.startswith(child_name + "."):
                return child.get_submodule(name[len(child_name) + 1 :])
        if not name:
            return self
        raise KeyError(f"module: expected the name of a module, got {name!r}")

    def train(self, mode: bool = True) -> Module:
        """Switch noise and dropout on (or off) here and below."""
        for _, module in self.named_modules():
            module.training = mode
        return self

    def eval(self) -> Module:
        """Switch noise and dropout off here and below."""
        return self.train(False)

    @contextmanager
    def without_noise(self) -> Iterator[None]:
        """Noise and dropout are off inside, and afterwards as they were."""
        if not self.training:
            yield
            return
        self.eval()
        try:
            yield
        finally:
            self.train()

    def extra_repr(self) -> str:
        """What stands between the brackets of the repr."""
        return ""

    def __repr__(self) -> str:
        children = [
            f"  ({name}): " + repr(child).replace("\n", "\n  ") for name, child in self.named_children()
        ]
        head = f"{type(self).__name__}({self.extra_repr()}"
        return head + ("\n" + "\n".join(children) + "\n)" if children else ")")


class Linear(Module):
    """y = x W^T + b with W frozen, plus the term of the adapter, if the batch brings one for this module.

    ``weight`` [O, D] (an array, packed here, or a PackedWeight), ``bias`` [O] or None. An adapter is called
    with ``(x, module, batch)``, the module being this one, and returns y.
    """

    def __init__(self, weight: np.ndarray | PackedWeight, bias: np.ndarray | None = None) -> None:
        self.weight = weight if isinstance(weight, PackedWeight) else PackedWeight(weight)
        self.bias = bias

    @property
    def in_features(self) -> int:
        """D."""
        return int(self.weight.shape[1])

    @property
    def out_features(self) -> int:
        """O."""
        return int(self.weight.shape[0])

    def __call__(self, x: np.ndarray | Node, batch: Batch) -> Any:
        """y [N, O] of x [N, D]."""
        adapter = None if batch.adapters is None else batch.adapters.get(self)
        if adapter is None:
            return tape.linear(x, self.weight, self.bias)
        return adapter(x, self, batch)

    def extra_repr(self) -> str:
        """Sizes."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        )


class FeedForward(Module):
    """y = down(activation(up(x))), or what the adapter makes of it, if the batch brings one for this module.

    ``compute`` is the formula over any projections, so that experts run it with their own.
    """

    projections: ClassVar[tuple[str, ...]] = ("up", "down")

    def __init__(self, up: Linear, down: Linear, activation: Activation) -> None:
        self.up, self.down, self.activation = up, down, activation

    def __call__(self, x: np.ndarray | Node, batch: Batch) -> Any:
        """y [N, D] of x [N, D]."""
        adapter = None if batch.adapters is None else batch.adapters.get(self)
        if adapter is None:
            return self.compute(x, lambda name, h: getattr(self, name)(h, batch))
        return adapter(x, self, batch)

    def compute(self, x: Any, project: Callable[[str, Any], Any]) -> Any:
        """The formula, with ``project(name, h)`` for each of ``projections``."""
        return project("down", tape.Activated(project("up", x), self.activation))


MOST_SHIFT = 16.0
"""|bias / weight| of a norm up to which its normalised rows are found again from what it returns: they lose
so many units in the last place."""


def _inverse(weight: np.ndarray, bias: np.ndarray) -> np.ndarray | None:
    """1 / weight, where that is safe for every column, else None."""
    tiny = np.sqrt(np.finfo(weight.dtype).tiny)
    if not (np.all(np.abs(weight) > tiny) and np.all(np.abs(bias) <= MOST_SHIFT * np.abs(weight))):
        return None
    return 1 / weight


class LayerNorm(Module):
    """LayerNorm(x + residual) over the last axis, frozen scale and shift."""

    def __init__(self, weight: np.ndarray, bias: np.ndarray, eps: float) -> None:
        self.weight, self.bias, self.eps = weight, bias, eps
        self._inverse = _inverse(weight, bias)

    def __call__(self, x: np.ndarray | Node, residual: np.ndarray | Node | None = None) -> Any:
        """[N, D] -> [N, D]."""
        return tape.layer_norm(x, self.weight, self.bias, self.eps, residual, self._inverse)

    def extra_repr(self) -> str:
        """Size."""
        return f"{len(self.weight)}, eps={self.eps}"


class RMSNorm(Module):
    """RMS norm over the last axis, frozen scale."""

    def __init__(self, weight: np.ndarray, eps: float) -> None:
        self.weight, self.eps = weight, eps
        self._inverse = _inverse(weight, np.zeros_like(weight))

    def __call__(self, x: np.ndarray | Node) -> Any:
        """[N, D] -> [N, D]."""
        return tape.rms_norm(x, self.weight, self.eps, self._inverse)

    def extra_repr(self) -> str:
        """Size."""
        return f"{len(self.weight)}, eps={self.eps}"


class Embedding(Module):
    """Rows of a frozen table [V, D]: an array, or the packed weight of the output head that shares it."""

    def __init__(self, weight: np.ndarray | PackedWeight) -> None:
        self.weight = weight

    def __call__(self, ids: np.ndarray) -> Any:
        """ids [N] -> [N, D]."""
        if isinstance(self.weight, PackedWeight):
            return self.weight.rows(ids)
        return tape.embedding(ids, self.weight)

    def extra_repr(self) -> str:
        """Size."""
        return f"{self.weight.shape[0]}, {self.weight.shape[1]}"
