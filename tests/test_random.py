"""Keyed uniform numbers, against numpy.random.Philox."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import numpy as np
import pytest

from polymoe.random import uniform


def expected(seed: int, stream: str, step: int, layer: str, example: int, n: int) -> np.ndarray:
    key = int.from_bytes(blake2b(f"{stream}\0{layer}".encode(), digest_size=8).digest(), "little")
    # NumPy adds 1 to the counter before it makes a block: begin one below (block 0, example, step, 0).
    counter = (((step << 128) | ((example % 2**64) << 64)) - 1) % 2**256
    words = np.random.Philox(counter=counter, key=(key << 64) | seed).random_raw((n + 7) // 8 * 4)
    halves = np.stack([words & 0xFFFFFFFF, words >> 32], axis=1).reshape(-1)[:n]
    return ((halves >> 9) + 0.5) * 2.0**-23


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 100, 4096, 4097, 9001])
def test_uniform_is_philox(isa: str, n: int) -> None:
    ids = np.array([0, 5, 2**40, 5, -1])
    got = uniform(123, "noise", 7, "encoder.layer.0.q", ids, n)
    assert got.dtype == np.float32
    assert got.shape == (5, n)
    for row, example in zip(got, ids, strict=True):
        want = expected(123, "noise", 7, "encoder.layer.0.q", int(example), n)
        assert np.array_equal(row.astype(np.float64), want)


def test_uniform_of_float64_is_the_same_numbers() -> None:
    assert np.array_equal(uniform(1, "a", 2, "b", [3], 20, "float64"), uniform(1, "a", 2, "b", [3], 20))


def test_uniform_reads_the_whole_seed_and_step() -> None:
    big = 2**64 - 1
    assert np.array_equal(uniform(big, "a", big, "b", [4], 16)[0], expected(big, "a", big, "b", 4, 16))


def test_everything_is_part_of_the_key() -> None:
    base: dict[str, Any] = {"seed": 1, "stream": "noise", "step": 2, "layer": "x", "example_ids": [3], "n": 8}
    others = [{"seed": 2}, {"stream": "dropout"}, {"step": 3}, {"layer": "y"}, {"example_ids": [4]}]
    moved = [{"stream": "noisex", "layer": ""}, {"stream": "nois", "layer": "ex"}]  # the border counts too
    draws = {uniform(**{**base, **change}).tobytes() for change in [{}, *others, *moved]}
    assert len(draws) == 1 + len(others) + len(moved)


def test_an_example_does_not_depend_on_its_batch() -> None:
    alone, together = uniform(1, "a", 2, "b", [9], 50), uniform(1, "a", 2, "b", [1, 9, 4], 50)
    assert np.array_equal(alone[0], together[1])
    assert np.array_equal(uniform(1, "a", 2, "b", [9], 20)[0], alone[0, :20])


def test_uniform_stays_inside_and_is_flat() -> None:
    u = uniform(0, "a", 0, "b", np.arange(100), 2000)
    assert u.min() > 0
    assert u.max() < 1
    counts, _ = np.histogram(u, bins=20, range=(0, 1))
    assert np.all(np.abs(counts - 10_000) < 5 * np.sqrt(10_000))


def test_threads_do_not_change_bits(threads: Any) -> None:
    draws = []
    for n in (1, 2, 4):
        threads(n)
        draws.append(uniform(0, "a", 0, "b", np.arange(40), 10_000).tobytes())
    assert draws[0] == draws[1] == draws[2]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"seed": -1}, ValueError, r"seed: expected an integer from 0 to 2\*\*64 - 1, got -1"),
        (
            {"seed": 2**64},
            ValueError,
            r"seed: expected an integer from 0 to 2\*\*64 - 1, got 18446744073709551616",
        ),
        ({"seed": 1.0}, TypeError, r"seed: expected an integer, got float"),
        ({"step": -1}, ValueError, r"step: expected an integer from 0 to 2\*\*64 - 1, got -1"),
        ({"n": -1}, ValueError, r"n: expected 0 or more, got -1"),
        ({"example_ids": [1.5]}, TypeError, r"example_ids: expected integers, got dtype float64"),
        ({"example_ids": [[1]]}, ValueError, r"example_ids: expected shape \(any,\), got \(1, 1\)"),
        ({"dtype": "int64"}, TypeError, r"out: expected dtype float32 or float64, got int64"),
    ],
)
def test_uniform_refuses(change: dict[str, Any], error: type[Exception], message: str) -> None:
    args = {"seed": 1, "stream": "a", "step": 1, "layer": "b", "example_ids": [1], "n": 4, **change}
    with pytest.raises(error, match=f"^{message}$"):
        uniform(**args)
