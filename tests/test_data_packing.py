"""Batches: within the budget, of similar lengths, every example once, the same again for the same seed."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polymoe.data import cut_batches, pack

lengths = st.lists(st.integers(0, 50), max_size=200).map(lambda values: np.array(values, dtype=np.int64))
budgets = st.one_of(
    st.fixed_dictionaries({"max_tokens": st.integers(1, 120)}),
    st.fixed_dictionaries({"batch_size": st.integers(1, 20)}),
    st.fixed_dictionaries({"max_tokens": st.integers(1, 120), "batch_size": st.integers(1, 20)}),
)


def fits(batch: np.ndarray, lengths: np.ndarray, budget: dict[str, int]) -> bool:
    within = lengths[batch].sum() <= budget.get("max_tokens", np.inf) or len(batch) == 1
    return bool(within) and 1 <= len(batch) <= budget.get("batch_size", np.inf)


@given(
    lengths=lengths, budget=budgets, seed=st.integers(0, 99), epoch=st.integers(0, 5), pool=st.integers(1, 8)
)
def test_pack_keeps_every_example_once_and_the_budget(
    lengths: np.ndarray, budget: dict[str, int], seed: int, epoch: int, pool: int
) -> None:
    order = np.random.default_rng(seed).permutation(len(lengths))
    batches = pack(order, lengths, seed=seed, epoch=epoch, pool=pool, **budget)
    again = pack(order.copy(), lengths.copy(), seed=seed, epoch=epoch, pool=pool, **budget)
    assert sorted(np.concatenate([*batches, []]).tolist()) == list(range(len(lengths)))
    assert all(fits(batch, lengths, budget) for batch in batches)
    assert [b.tolist() for b in batches] == [b.tolist() for b in again]


@given(lengths=lengths, budget=budgets)
def test_cut_batches_keeps_the_order_and_takes_what_fits(lengths: np.ndarray, budget: dict[str, int]) -> None:
    order = np.arange(len(lengths))[::-1]
    batches = cut_batches(order, lengths, **budget)
    assert np.concatenate([*batches, []]).tolist() == order.tolist()
    assert all(fits(batch, lengths, budget) for batch in batches)
    for batch, following in pairwise(batches):
        assert not fits(np.append(batch, following[0]), lengths, budget)


def test_an_example_that_comes_twice_is_packed_twice() -> None:
    batches = pack(np.array([2, 0, 2, 1]), np.array([5, 6, 7]), batch_size=3, seed=0, epoch=0)
    assert sorted(np.concatenate(batches).tolist()) == [0, 1, 2, 2]


def test_batches_are_of_similar_lengths_and_waste_little_of_the_budget() -> None:
    random = np.random.default_rng(0)
    lengths = random.integers(5, 256, 4000)
    batches = pack(random.permutation(4000), lengths, max_tokens=2048, seed=0, epoch=0)
    spread = np.mean([np.ptp(lengths[batch]) for batch in batches])
    assert spread < 15  # 250 without sorting
    assert len(batches) < 1.1 * lengths.sum() / 2048


def test_batch_size_alone_leaves_one_short_batch() -> None:
    lengths = np.random.default_rng(0).integers(1, 99, 3 * 64 * 7 + 5)
    batches = pack(np.arange(len(lengths)), lengths, batch_size=7, seed=0, epoch=0)
    assert sorted(map(len, batches)) == [5] + [7] * (3 * 64)


def test_short_texts_come_neither_first_nor_last() -> None:
    lengths = np.arange(1, 641)
    places = np.zeros(640)
    for epoch in range(40):
        batches = pack(np.arange(640), lengths, batch_size=10, seed=0, epoch=epoch)
        for place, batch in enumerate(batches):
            places[batch] += place / 40
    assert abs(np.corrcoef(lengths, places)[0, 1]) < 0.3
    assert np.abs(places - 31.5).max() < 12  # 4 standard deviations of the mean of 40 places out of 64


def test_pools_keep_to_the_order() -> None:
    lengths = np.random.default_rng(0).integers(1, 99, 1000)
    batches = pack(np.arange(1000), lengths, batch_size=10, seed=0, epoch=0, pool=5)
    for i in range(0, 100, 5):
        pool = np.concatenate(batches[i : i + 5])
        assert sorted(pool.tolist()) == list(range(10 * i, 10 * i + 50))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "max_tokens, batch_size: expected at least one of them, got None for both"),
        ({"max_tokens": 0}, ValueError, "max_tokens: expected at least 1, got 0"),
        ({"batch_size": -1}, ValueError, "batch_size: expected at least 1, got -1"),
        ({"batch_size": 2.5}, TypeError, "float"),
        ({"batch_size": 2, "pool": 0}, ValueError, "pool: expected at least 1, got 0"),
        ({"batch_size": 2, "order": np.array([0.5])}, TypeError, "order: expected a row of integers"),
        (
            {"batch_size": 2, "lengths": np.ones((2, 2), dtype=int)},
            TypeError,
            r"lengths: .* got shape \(2, 2\)",
        ),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pack(**{"order": np.arange(2), "lengths": np.arange(2), "seed": 0, "epoch": 0, **arguments})
