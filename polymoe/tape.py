"""Reverse-mode recording of the pairs in :mod:`polymoe.functional`.

Every function here has the name and the arguments of the functional one and returns only its ``y``. Under a
tape, an operation that has a :class:`Node` among its arguments returns a ``Node``; arguments that need no
gradient stay plain arrays all the way, so whatever lies below the lowest trainable parameter is never
differentiated.

A ``Node`` has no operators and refuses to become an array: a forgotten operation is a TypeError, never a
silently cut gradient.

    with Tape() as tape:
        loss = tape_function(...)
    tape.backward(loss)                 # Parameter.grad now holds (adds) the gradients
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np

from polymoe import functional as F
from polymoe.functional.linear import Activation

_current: ContextVar[Tape | None] = ContextVar("polymoe_tape", default=None)
_losses: ContextVar[list[Any] | None] = ContextVar("polymoe_losses", default=None)


class Gradient:
    """Where the gradient of a value is summed: all that a record knows of the value, which is freed when
    nobody else needs it."""

    __slots__ = ("grad",)

    def __init__(self) -> None:
        self.grad: np.ndarray | None = None

    def accumulate(self, grad: np.ndarray) -> None:
        """Add a gradient. The first is kept as it is: a backward never returns an array that it keeps."""
        self.grad = grad if self.grad is None else self.grad + grad


class Node:
    """A value on the tape: ``data`` (array) and, during backward, ``grad`` (array or None)."""

    __slots__ = ("data", "gradient")

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


class Activated:
    """``activation(x) * times``, which nobody has computed yet.

    :func:`linear` forms it as it reads x, without an array of its own. Every other function asks for the
    whole, which is then kept for whoever reads it next.
    """

    __slots__ = ("activation", "times", "whole", "x")

    def __init__(self, x: Any, activation: Activation, times: Any = None) -> None:
        self.x, self.activation, self.times = x, activation, times
        self.whole: Any = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the value."""
        return tuple(self.x.shape)

    def form(self) -> Any:
        """The value itself."""
        if self.whole is None:
            name, *approximate = self.activation.split("_")
            y = {"relu": relu, "gelu": gelu, "silu": silu}[name](self.x, *approximate)
            self.whole = y if self.times is None else multiply(y, self.times)
        return self.whole


class _Record(NamedTuple):
    output: Gradient
    saved: Any
    backward: Callable[..., Any]
    inputs: dict[str, Gradient]  # by the name of the argument
    selective: bool  # backward takes `needs`
    adds: bool  # backward takes `onto`, what dx is added to


class _Forgotten(list[_Record]):
    """Records of which none is kept: values still say that they depend on something trained."""

    def append(self, record: _Record) -> None:
        """Let go of it."""


class Tape:
    """Records operations while entered; :meth:`backward` replays them in reverse and frees what it used.

    ``losses``: what :func:`auxiliary` was told while entered, scalars that go into the loss beside whatever
    :meth:`backward` starts from.
    """

    def __init__(self) -> None:
        self.records: list[_Record] = []
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
            if record.output is not keep:
                record.output.grad = None


def current_tape() -> Tape | None:
    """The tape that is entered, if any."""
    return _current.get()


def data_of(x: Any) -> Any:
    """The array of a node, or ``x`` itself."""
    x = x.form() if isinstance(x, Activated) else x
    return x.data if isinstance(x, Node) else x


def differentiable(
    forward: Callable[..., Any], backward: Callable[..., Any], beside: str | None = None
) -> Callable[..., Any]:
    """``forward -> (y, saved)`` as a recorded operation; ``backward(saved, dy)`` gives ``d<argument>, ...``.

    ``beside`` names a field of ``saved``, an array without gradient, that is returned beside ``y``."""
    signature = inspect.signature(forward)
    parameters = tuple(signature.parameters)
    takes = inspect.signature(backward).parameters
    selective, adds, activates = "needs" in takes, "onto" in takes, "activation" in parameters

    def op(*args: Any, **kwargs: Any) -> Any:
        tape = _current.get()
        given = (*args, *kwargs.values())
        if tape is None and Activated not in map(type, given):  # nothing is recorded
            plain = [a.data if isinstance(a, Node) else a for a in args]
            y, saved = forward(*plain, **{k: a.data if isinstance(a, Node) else a for k, a in kwargs.items()})
            return y if beside is None else (y, getattr(saved, beside))
        bound = dict(zip(parameters, args, strict=False)) | kwargs
        if len(bound) != len(given):
            signature.bind(*args, **kwargs)  # too many arguments, or one given twice: it says which
        for name, value in tuple(bound.items()):
            if not isinstance(value, Activated):
                continue
            if activates and name == "x" and value.whole is None:
                bound |= {"x": value.x, "activation": value.activation, "times": value.times}
            else:
                bound[name] = value.form()
        gradients = {
            name: value.gradient
            for name, value in bound.items()
            if isinstance(value, Node) and getattr(value, "trainable", True)
        }
        y, saved = forward(**{name: data_of(value) for name, value in bound.items()})
        output = y
        if tape is not None and gradients:
            output = Node(y)
            tape.records.append(_Record(output.gradient, saved, backward, gradients, selective, adds))
        return output if beside is None else (output, getattr(saved, beside))

    op.__name__ = op.__qualname__ = forward.__name__
    returns = "y alone" if beside is None else f"y and saved.{beside}"
    op.__doc__ = (
        f"{forward.__doc__}\n\n    Differentiable form of "
        f":func:`polymoe.functional.{forward.__name__}`: returns {returns}."
    )
    return op


linear = differentiable(F.linear, F.linear_backward)
moe = differentiable(F.moe, F.moe_backward)
dense = differentiable(F.dense, F.dense_backward)
expert_dense = differentiable(F.expert_dense, F.expert_dense_backward)
mix = differentiable(F.mix, F.mix_backward)
task_router = differentiable(F.task_router, F.task_router_backward)
tensor_product = differentiable(F.tensor_product, F.tensor_product_backward)
softmax_router = differentiable(F.softmax_router, F.softmax_router_backward)
topk_router = differentiable(F.topk_router, F.topk_router_backward, beside="ids")
balance_loss = differentiable(F.balance_loss, F.balance_loss_backward)
layer_norm = differentiable(F.layer_norm, F.layer_norm_backward)
rms_norm = differentiable(F.rms_norm, F.rms_norm_backward)
rope = differentiable(F.rope, F.rope_backward)
silu = differentiable(F.silu, F.silu_backward)
gelu = differentiable(F.gelu, F.gelu_backward)
relu = differentiable(F.relu, F.relu_backward)
multiply = differentiable(F.multiply, F.multiply_backward)
add = differentiable(F.add, F.add_backward)
scale_by = differentiable(F.scale_by, F.scale_by_backward)
l2_normalize = differentiable(F.l2_normalize, F.l2_normalize_backward)
attention = differentiable(F.attention, F.attention_backward)
embedding = differentiable(F.embedding, F.embedding_backward)
mean_pool = differentiable(F.mean_pool, F.mean_pool_backward)
attention_pool = differentiable(F.attention_pool, F.attention_pool_backward)
dropout = differentiable(F.dropout, F.dropout_backward)
concat = differentiable(F.concat, F.concat_backward)
reshape = differentiable(F.reshape, F.reshape_backward)
ibp_loss = differentiable(F.ibp_loss, F.ibp_loss_backward)
cross_entropy = differentiable(F.cross_entropy, F.cross_entropy_backward)
mse = differentiable(F.mse, F.mse_backward)
lm_loss = differentiable(F.lm_loss, F.lm_loss_backward, beside="per_token")


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

    tape.records.append(_Record(output.gradient, None, backward, {}, False, False))
    return output
