"""Fixtures shared by the tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from polymoe import _core


@pytest.fixture(params=_core.isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set of this machine in turn; the one that was in use comes back afterwards."""
    before = _core.get_isa()
    _core.set_isa(request.param)
    yield request.param
    _core.set_isa(before)


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every array that ``_core.empty`` makes is filled with NaN (or -1): what a kernel forgets to write is
    seen."""
    empty = _core.empty

    def filled(shape: Any, dtype: Any) -> np.ndarray:
        a = empty(shape, dtype)
        a.fill(np.nan if a.dtype.kind == "f" else -1)
        return a

    monkeypatch.setattr(_core, "empty", filled)


@pytest.fixture
def threads() -> Iterator[Any]:
    """``_core.set_num_threads``; the default comes back afterwards."""
    yield _core.set_num_threads
    _core.set_num_threads(0)
