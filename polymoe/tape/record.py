"""The record of a forward pass: values with a gradient, and the tape that replays what made them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, ClassVar, NamedTuple

import numpy as np

_current: ContextVar[Tape | None] = ContextVar("polymoe_tape", default=None)
_losses: ContextVar[list[Any] | None] = ContextVar("polymoe_losses", default=None)


class Gradient:
    """Where the gradient of a value is summed: all that a record knows of the value, which is freed when
    nobody else needs it."""

    __slots__ = ("grad",)

    def __init__(self) -> None:
        self.grad: np.ndarray | None = None

    def clear(self, keep: Gradient | None) -> None:
        """Let go of it, unless this is ``keep``."""
        if self is not keep:
            self.grad = None

    def accumulate(self, grad: np.ndarray) -> None:
        """Add a gradient. The first is kept as it is: a backward never returns an array that it keeps."""
        self.grad = grad if self.grad is None else self.grad + grad


class Node:
    """A value on the tape: ``data`` (array) and, during backward, ``grad`` (array or None)."""

    __slots__ = ("data", "gradient")
    kinds: ClassVar[set[type]] = set()

    def __init_subclass__(cls) -> None:
        Node.kinds.add(cls)

    def __init__(self, data: np.ndarray, gradient: Gradient | None = None) -> None:
        self.data = data
        self.gradient = Gradient() if gradient is None else gradient

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the value."""
        return self.data.shape

    @property
    def grad(self) -> np.ndarray | None:
        """The sum of its gradients so far, or None."""
        return self.gradient.grad

    @grad.setter
    def grad(self, grad: np.ndarray | None) -> None:
        self.gradient.grad = grad

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError(
            f"{type(self).__name__}: expected a function of polymoe.tape, got a NumPy operation "
            "(its gradient would be lost)"
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={self.data.shape}, dtype={self.data.dtype})"


Node.kinds.add(Node)


class Deferred:
    """A value that nobody has computed yet: whoever reads it asks for the ``whole``."""

    __slots__ = ()
    kinds: ClassVar[set[type]] = set()

    def __init_subclass__(cls) -> None:
        Deferred.kinds.add(cls)

    @property
    def whole(self) -> Any:
        """The value itself, a node or an array, kept for whoever reads it next."""
        raise NotImplementedError


class Record(NamedTuple):
    """One operation: ``output.grad`` is what ``backward(saved, dy)`` is called with."""

    output: Any
    saved: Any
    backward: Callable[..., Any]
    inputs: dict[str, Gradient]  # by the name of the argument
    selective: bool  # backward takes `needs`
    adds: bool  # backward takes `onto`, what dx is added to


class _Forgotten(list[Record]):
    """Records of which none is kept: values still say that they depend on something trained."""

    def append(self, record: Record) -> None:
        """Let go of it."""


class Tape:
    """Records operations while entered; :meth:`backward` replays them in reverse and frees what it used.

    ``losses``: what :func:`auxiliary` was told while entered, scalars that go into the loss beside whatever
    :meth:`backward` starts from.
    """

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.losses: list[Node | np.ndarray] = []
        self.dlosses = 1.0

    def __enter__(self) -> Tape:
        self._token, self._losses_token = _current.set(self), _losses.set(self.losses)
        return self

    def __exit__(self, *exc: object) -> None:
        _current.reset(self._token)
        _losses.reset(self._losses_token)

    def auxiliary_loss(self) -> float:
        """The sum of ``losses``."""
        return float(sum(float(data_of(loss)) for loss in self.losses))

    def backward(
        self, output: Node | np.ndarray, dy: np.ndarray | None = None, dlosses: float | None = None
    ) -> None:
        """Add d(sum(output * dy) + dlosses * sum(losses))/d(node) to every node that they depend on.

        ``dy`` is 1 for a scalar, ``dlosses`` the value of a scalar ``dy``, else 1. Frees the recorded
        operations as it goes: a tape can be replayed once.
        """
        if not isinstance(output, Node):
            raise ValueError("output: expected a value that depends on a trainable parameter, got a constant")
        if dy is None and output.data.size != 1:
            raise ValueError(
                f"dy: expected an array of shape {output.shape}, got None (only a scalar has a default)"
            )
        output.grad = np.ones_like(output.data) if dy is None else np.asarray(dy, dtype=output.data.dtype)
        if output.grad.shape != output.data.shape:
            raise ValueError(f"dy: expected shape {output.shape}, got {output.grad.shape}")
        scalar = float(output.grad) if output.grad.ndim == 0 else 1.0
        self._replay(scalar if dlosses is None else dlosses, output.gradient)

    def _replay(self, dlosses: float, keep: Gradient | None = None) -> None:
        """From the gradients that are there; those of values on the tape are freed, but for ``keep``."""
        self.dlosses = dlosses
        for loss in self.losses:
            if isinstance(loss, Node):
                loss.gradient.accumulate(np.full_like(loss.data, self.dlosses))
        while self.records:
            record = self.records.pop()
            dout = record.output.grad
            if dout is None:
                continue
            options: dict[str, Any] = {"needs": set(record.inputs)} if record.selective else {}
            x = record.inputs.get("x")
            if record.adds and type(x) is Gradient:  # a sum that costs no pass of its own
                options["onto"], x.grad = x.grad, None
            grads = record.backward(record.saved, dout, **options)
            for name, gradient in record.inputs.items():
                grad = getattr(grads, "d" + name)
                if grad is not None:
                    gradient.accumulate(grad)
            record.output.clear(keep)


def current_tape() -> Tape | None:
    """The tape that is entered, if any."""
    return _current.get()


def gradients_of(values: Mapping[str, Any]) -> dict[str, Gradient]:
    """Where the gradient goes of each value that has one."""
    return {
        name: value.gradient
        for name, value in values.items()
        if isinstance(value, Node) and getattr(value, "trainable", True)
    }


def whole_of(x: Any) -> Any:
    """``x``, or what it stands for if that was not computed yet."""
    return x.whole if isinstance(x, Deferred) else x


def data_of(x: Any) -> Any:
    """The array of a node, or ``x`` itself."""
    x = whole_of(x)
    return x.data if isinstance(x, Node) else x


def auxiliary(loss: Any) -> None:
    """Put a scalar into the loss of the tape that is entered, if there is one.

    The one way for a layer deep in a model to add to the loss: within :func:`checkpoint` too, where the value
    is told as the layer runs and the gradient comes as it runs again.
    """
    losses = _losses.get()
    if losses is not None:
        losses.append(loss)


def checkpoint(fn: Callable[..., Any], *args: Any) -> Any:
    """``fn(*args)`` without keeping what its backward needs: it is run again then (less memory, more time).

    ``fn`` must give the same result when it runs again; the randomness of polymoe is keyed by step and
    example, so it does. It may also read nodes that are not among ``args``. Gradients are summed in the same
    order as without: they are the same to the last bit.
    """
    tape = _current.get()
    if tape is None:
        return fn(*args)
    forgetful = Tape()
    forgetful.records = _Forgotten()
    token = _current.set(forgetful)
    try:
        y = fn(*args)
    finally:
        _current.reset(token)
    if not isinstance(y, Node):
        return y  # nothing within is trained
    output = Node(y.data)

    def backward(saved: Any, dy: np.ndarray) -> None:
        with Tape() as inner:
            again = fn(*args)
        again.gradient.accumulate(dy)
        inner._replay(tape.dlosses)

    tape.records.append(Record(output.gradient, None, backward, {}, False, False))
    return output
