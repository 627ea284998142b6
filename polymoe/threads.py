"""How many threads a call may use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from polymoe import _core


@contextmanager
def num_threads(n: int) -> Iterator[None]:
    """Calls from this thread use at most ``n`` threads within a ``with``; 0: as many as elsewhere.

    Elsewhere :func:`polymoe.set_num_threads` says it, or by default OpenMP's own limit
    (``OMP_NUM_THREADS``, or what ``threadpoolctl`` has set), the affinity mask and the cgroup's quota.
    Results do not depend on it.

    >>> with num_threads(1):
    ...     _core.get_num_threads()
    1
    """
    before = _core.set_num_threads_here(n)
    try:
        yield
    finally:
        _core.set_num_threads_here(before)
