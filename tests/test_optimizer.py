"""AdamW and the gradient norm on segments: against the reference, and what must keep its bits does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from polymoe import functional as F
from polymoe import reference as R

SEGMENTS: dict[str, Any] = {  # gaps before, between and after; one empty; one over several blocks of work
    "offsets": [3, 20, 20, 37, 1000, 90_000],
    "lengths": [16, 0, 17, 1, 60_000, 5],
}
N = 90_100


def buffers(dtype: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    data, grad, m = (rng.normal(size=N).astype(dtype) for _ in range(3))
    return {"data": data, "grad": grad, "m": m, "v": np.square(rng.normal(size=N)).astype(dtype)}


def copies(arrays: dict[str, np.ndarray], dtype: Any = None) -> dict[str, np.ndarray]:
    return {k: v.astype(dtype or v.dtype) for k, v in arrays.items()}


RATES: dict[str, Any] = {
    "lr": [1e-3, 1.0, 0.1, 0.0, 1e-2, 0.5],
    "weight_decay": [0.0, 1.0, 0.1, 0.5, 1e-2, 0.01],
}


@pytest.mark.parametrize(("dtype", "tol"), [("float32", 2e-6), ("float64", 1e-14)])
@pytest.mark.parametrize("step", [1, 2, 1000])
def test_adamw_matches_reference(isa: str, dtype: str, tol: float, step: int) -> None:
    got = buffers(dtype)
    want = copies(got, np.float64)
    options: dict[str, Any] = {"beta1": 0.8, "beta2": 0.95, "eps": 1e-6, "step": step, "grad_scale": 0.3}
    F.adamw_step(**got, **SEGMENTS, **RATES, **options)
    R.adamw_step(**want, **SEGMENTS, **RATES, **options)
    for name in ("data", "m", "v"):
        np.testing.assert_allclose(got[name], want[name], rtol=tol, atol=tol)


def test_adamw_leaves_the_rest_untouched() -> None:
    before = buffers("float32")
    after = copies(before)
    F.adamw_step(**after, **SEGMENTS, **RATES)
    inside = np.zeros(N, bool)
    for offset, length in zip(SEGMENTS["offsets"], SEGMENTS["lengths"], strict=True):
        inside[offset : offset + length] = True
    assert np.array_equal(before["grad"], after["grad"])
    for name in ("data", "m", "v"):
        assert before[name][~inside].tobytes() == after[name][~inside].tobytes()
    assert not np.any(before["m"][inside] == after["m"][inside])


def test_adamw_with_no_segments_does_nothing() -> None:
    arrays = buffers("float32")
    before = copies(arrays)
    F.adamw_step(**arrays, offsets=[], lengths=[], lr=[], weight_decay=[])
    assert all(np.array_equal(before[k], arrays[k]) for k in arrays)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_global_norm_matches_reference(isa: str, dtype: str) -> None:
    grad = buffers(dtype)["grad"]
    grad[:3] = np.nan  # outside the segments: not read
    assert F.global_norm(grad, **SEGMENTS) == pytest.approx(R.global_norm(grad, **SEGMENTS), rel=1e-13)
    assert F.global_norm(grad, [], []) == 0.0


def test_global_norm_does_not_overflow_in_float32() -> None:
    assert F.global_norm(np.full(4, 1e30, np.float32), [0], [4]) == pytest.approx(2e30, rel=1e-6)


def test_threads_do_not_change_bits(isa: str, threads: Any) -> None:
    results = set()
    for n in (1, 2, 3, 4):
        threads(n)
        arrays = buffers("float32")
        F.adamw_step(**arrays, **SEGMENTS, **RATES)
        norm = F.global_norm(arrays["grad"], **SEGMENTS)
        results.add((norm, arrays["data"].tobytes(), arrays["m"].tobytes(), arrays["v"].tobytes()))
    assert len(results) == 1
