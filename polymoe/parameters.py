"""Parameters, the arrays that are trained, and the flat buffer that holds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from polymoe import _core
from polymoe.tape import Gradient, Node


class GradientInPlace(Gradient):
    """One that is added to in place: it may be a view of a flat buffer."""

    __slots__ = ()

    def accumulate(self, grad: np.ndarray) -> None:
        """Add a gradient."""
        if self.grad is None:
            self.grad = np.array(grad)
        else:
            self.grad += grad


class Parameter(Node):
    """A trainable array. ``group`` (of ``GROUPS``) selects its learning rate; ``frozen`` are rows (of the
    first axis) that are not trained, such as those of tasks that were learnt before.

    ``data`` and ``grad`` become views of the flat buffers once :class:`FlatParameters` has collected it;
    gradients are added in place until :meth:`FlatParameters.zero_grad`.
    """

    __slots__ = ("frozen", "group", "trainable")

    def __init__(self, data: np.ndarray, group: str = "skills", trainable: bool = True) -> None:
        super().__init__(data, GradientInPlace())
        self.group = group
        self.trainable = trainable
        self.frozen = range(0)

    @property
    def n_trainable(self) -> int:
        """Numbers that are trained."""
        return sum(self.data[a:b].size for a, b, trainable in self.pieces() if trainable)

    def pieces(self) -> list[tuple[int, int, bool]]:
        """(first row, end, whether they are trained) of rows that are, or are not."""
        rows = len(self.data)
        if not (self.trainable and self.frozen):
            return [(0, rows, self.trainable)]
        a, b = self.frozen.start, self.frozen.stop
        return [piece for piece in ((0, a, True), (a, b, False), (b, rows, True)) if piece[0] < piece[1]]


@dataclass(frozen=True)
class Segment:
    """Where a parameter lies in the flat buffer, or some rows of it: ``length`` floats from ``offset``."""

    name: str
    group: str
    offset: int
    length: int
    shape: tuple[int, ...]
    trainable: bool


GROUPS = ("router", "content", "skills", "gains", "heads", "objective")
ALIGN = 16  # floats: every parameter starts on a cache line


class FlatParameters:
    """All parameters in one aligned float32 buffer, by group, then name; gradients in a second one alike.

    The parameters' ``data`` and ``grad`` become views of the buffers. ``segments`` says where each one is:
    the optimiser, the norm and checkpoints go by them. A parameter with frozen rows has several segments, by
    rows ("logits[0:3]"). Gaps between segments are zero and stay so.
    """

    def __init__(self, parameters: Sequence[tuple[str, Parameter]]) -> None:
        for name, p in parameters:
            if p.data.dtype != np.float32:
                raise TypeError(f"{name}: expected dtype float32, got {p.data.dtype}")
            if p.group not in GROUPS:
                raise ValueError(f"{name}: expected a group out of {GROUPS}, got {p.group!r}")
        ordered = sorted(parameters, key=lambda item: (GROUPS.index(item[1].group), item[0]))
        sizes = [-(-p.data.size // ALIGN) * ALIGN for _, p in ordered]
        self.data: np.ndarray = _core.empty(sum(sizes), np.dtype(np.float32))
        self.grad: np.ndarray = _core.empty(sum(sizes), np.dtype(np.float32))
        self.data[:] = 0
        self.grad[:] = 0
        self.segments: list[Segment] = []
        self.parameters: dict[str, Parameter] = {}
        offset = 0
        for (name, p), size in zip(ordered, sizes, strict=True):
            self.segments += _segments(name, p, offset)
            whole = Segment(name, p.group, offset, p.data.size, p.data.shape, p.trainable)
            view = self.view(self.data, whole)
            view[...] = p.data
            p.data = view
            p.grad = self.view(self.grad, whole)
            self.parameters[name] = p
            offset += size

    def view(self, buffer: np.ndarray, segment: Segment) -> np.ndarray:
        """The part of a flat buffer that belongs to a segment, in its shape."""
        return buffer[segment.offset : segment.offset + segment.length].reshape(segment.shape)

    def zero_grad(self) -> None:
        """Set all gradients to zero."""
        self.grad[:] = 0

    def __len__(self) -> int:
        return sum(s.length for s in self.segments)


def _segments(name: str, p: Parameter, offset: int) -> list[Segment]:
    """The segments of a parameter that starts at ``offset``."""
    pieces = p.pieces()
    if len(pieces) == 1:
        return [Segment(name, p.group, offset, p.data.size, p.data.shape, pieces[0][2])]
    row = p.data[0].size
    return [
        Segment(f"{name}[{a}:{b}]", p.group, offset + a * row, (b - a) * row, p.data[a:b].shape, trainable)
        for a, b, trainable in pieces
    ]
