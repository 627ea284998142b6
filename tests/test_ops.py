"""Every case of the table, on every instruction set, against the reference in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import CASES, Args, Case, cast

from polymoe import _core
from polymoe import functional as F
from polymoe import reference as R


def generator(case: Case) -> np.random.Generator:
    return np.random.default_rng(sum(map(ord, str(case))))


def frozen(args: Args) -> Args:
    """The arguments, arrays read-only."""
    for value in args.values():
        if isinstance(value, np.ndarray):
            value.setflags(write=False)
    return args


def fields(grads: Any) -> dict[str, Any]:
    return dict(grads) if isinstance(grads, dict) else grads._asdict()


def run(module: Any, case: Case, args: Args, dy: np.ndarray | None) -> dict[str, np.ndarray]:
    """y and the gradients of the differentiable arguments, for a given dy."""
    y, saved = getattr(module, case.op)(**args)
    if dy is None:
        return {"y": y}
    grads = fields(getattr(module, case.op + "_backward")(saved, dy.astype(y.dtype)))
    return {"y": y, **{name: grads["d" + name] for name in case.wrt}}


def dy_for(case: Case, rng: np.random.Generator, y: Any) -> np.ndarray:
    return rng.normal(size=np.shape(y))


def compare(case: Case, got: dict[str, np.ndarray], want: dict[str, np.ndarray], tol: float) -> None:
    assert got.keys() == want.keys()
    for name in want:
        assert np.shape(got[name]) == np.shape(want[name]), name
        if np.size(want[name]) == 0:
            continue
        scale = max(float(np.max(np.abs(want[name]))), case.floor)
        error = float(np.max(np.abs(got[name] - want[name]))) / scale
        assert error <= tol, (
            f"{case}: {name} is off by {error:.3g} of its largest value, expected at most {tol:.3g}"
        )


def exact(case: Case, dtype: str) -> tuple[Args, np.ndarray, dict[str, np.ndarray]]:
    """Arguments in ``dtype``, dy, and what the reference makes of them in float64."""
    rng = generator(case)
    args = cast(case.make(rng), dtype)
    wide = {
        k: v.astype(np.float64) if isinstance(v, np.ndarray) and v.dtype.kind == "f" else v
        for k, v in args.items()
    }
    y, _ = getattr(R, case.op)(**wide)
    dy = dy_for(case, rng, y).astype(dtype)
    return args, dy, run(R, case, wide, dy.astype(np.float64))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_matches_reference(case: Case, isa: str, poisoned: None) -> None:
    args, dy, want = exact(case, "float32")
    got = run(F, case, frozen(args), dy)
    assert all(np.asarray(value).dtype == np.float32 for value in got.values())
    compare(case, got, want, case.tol["float32"])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float64_matches_reference(case: Case, poisoned: None) -> None:
    args, dy, want = exact(case, "float64")
    got = run(F, case, frozen(args), dy)
    assert all(np.asarray(value).dtype == np.float64 for value in got.values())
    compare(case, got, want, case.tol["float64"])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_inputs_are_unchanged(case: Case) -> None:
    args, dy, _ = exact(case, "float32")
    before = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in args.items()}
    dy_before = dy.copy()
    run(F, case, args, dy)
    for name, value in before.items():
        if isinstance(value, np.ndarray):
            assert value.tobytes() == args[name].tobytes(), name
    assert dy.tobytes() == dy_before.tobytes()


@pytest.mark.parametrize("case", [c for c in CASES if c.big], ids=str)
def test_threads_do_not_change_bits(case: Case, isa: str, threads: Any) -> None:
    args, dy, _ = exact(case, "float32")
    threads(1)
    want = run(F, case, args, dy)
    for n in (2, 3, 4):
        threads(n)
        for name, value in run(F, case, args, dy).items():
            assert value.tobytes() == want[name].tobytes(), f"{name} with {n} threads"


@pytest.mark.parametrize("op", sorted({c.op for c in CASES}))
def test_every_operation_has_a_large_case(op: str) -> None:
    assert any(c.big for c in CASES if c.op == op)


@pytest.mark.parametrize("n", [0, 1, 191, 192, 193, 1000])
def test_read_passes_over_every_value(n: int, isa: str, threads: Any) -> None:
    for count in (1, 3):
        threads(count)
        assert _core.read(np.arange(n, dtype=np.float32), 3) == 3 * n * (n - 1) / 2
