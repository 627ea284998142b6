"""Fixtures shared by the tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from polymoe import _core

# Few tests that take long, most of all under a sanitizer. They go first: where several processes share the
# files, none is left alone with one of these at the end.
LONG = ("test_report_notebook", "test_examples", "test_readme", "test_demo", "test_training_real", "test_cli")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those of LONG first, the others in their order."""
    items.sort(key=lambda item: item.path.stem not in LONG)


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


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny base, for the tests of the command line; others have bases of their own."""
    from training_base import base_folder

    return str(base_folder(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with two small tasks, animal and colour."""
    from training_base import classes, write_tasks

    return write_tasks(tmp_path_factory.mktemp("data"), classes())


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, base: str, data: str) -> str:
    """A finished run of Poly over both, to be read only."""
    from polymoe import TrainingConfig
    from polymoe.recipe import Recipe

    output = str(tmp_path_factory.mktemp("runs") / "run")
    training = TrainingConfig(epochs=1)
    Recipe(base=base, data=data, method="poly", training=training).train(output, progress=None)
    return output
