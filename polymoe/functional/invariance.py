"""Batch invariance: whether the bits of an example may depend on what else is in its batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_everywhere = False
_here: ContextVar[bool | None] = ContextVar("polymoe_batch_invariant", default=None)


def set_batch_invariant(on: bool) -> None:
    """From now on, in every thread: what a forward gives for an example is, bit for bit, the same alone, in
    any batch, and at any place in it.

    Every sum over the tokens or columns of an example has a fixed order already; what depends on the batch is
    which of two formulas of the same value :func:`polymoe.functional.linear` takes where factors are mixed.
    With the mode on, "auto" is always "mix", which is slower where examples have few tokens. Without it, a
    different batch moves results by rounding alone. Gradients are sums over the batch, in its order, and so
    depend on it by rounding in either mode. Another instruction set gives other bits.
    """
    global _everywhere
    _everywhere = bool(on)


def get_batch_invariant() -> bool:
    """Whether the mode is on, here."""
    here = _here.get()
    return _everywhere if here is None else here


@contextmanager
def batch_invariant(on: bool | None = True) -> Iterator[None]:
    """The mode of :func:`set_batch_invariant` within a ``with``, for this thread; None leaves it as it is.

    >>> with batch_invariant():
    ...     get_batch_invariant()
    True
    """
    token = _here.set(get_batch_invariant() if on is None else on)
    try:
        yield
    finally:
        _here.reset(token)
