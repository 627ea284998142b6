"""The order of an epoch: who comes how often, none left out, and the same again for the same seed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polymoe.data import epoch_order, task_counts
from polymoe.data.order import shuffled

sizes = st.lists(st.integers(1, 60), min_size=1, max_size=6)
samplings = st.sampled_from(
    [{"sampling": "proportional"}, {"sampling": "uniform"}, {"sampling": "temperature", "temperature": 2.0},
     {"sampling": "temperature", "temperature": 0.1}, {"sampling": "temperature", "temperature": 1e6}]
)  # fmt: skip
seeds, epochs = st.integers(0, 2**40), st.integers(0, 20)


def tasks_of(order: np.ndarray, sizes: list[int]) -> np.ndarray:
    return np.searchsorted(np.cumsum(sizes), order, side="right")


@given(sizes=sizes, seed=seeds, epoch=epochs)
def test_proportional_gives_every_example_once(sizes: list[int], seed: int, epoch: int) -> None:
    order = epoch_order(sizes, seed=seed, epoch=epoch)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(sum(sizes)))


@given(sizes=sizes, sampling=samplings, seed=seeds, epoch=epochs)
def test_epoch_has_the_length_of_the_data_and_the_promised_shares(
    sizes: list[int], sampling: Any, seed: int, epoch: int
) -> None:
    counts = task_counts(sizes, **sampling)
    order = epoch_order(sizes, seed=seed, epoch=epoch, **sampling)
    assert len(order) == counts.sum() == sum(sizes)
    assert np.bincount(tasks_of(order, sizes), minlength=len(sizes)).tolist() == counts.tolist()
    assert (order == epoch_order(sizes, seed=seed, epoch=epoch, **sampling)).all()


@given(sizes=sizes, sampling=samplings, seed=seeds)
def test_no_example_comes_again_before_all_of_its_task_have_come(
    sizes: list[int], sampling: Any, seed: int
) -> None:
    order = np.concatenate([epoch_order(sizes, seed=seed, epoch=e, **sampling) for e in range(3)])
    tasks = tasks_of(order, sizes)
    for t, n in enumerate(sizes):
        stream = order[tasks == t].tolist()
        for start in range(0, len(stream), n):
            seen = stream[start : start + n]
            assert len(set(seen)) == len(seen)


def test_shares_follow_the_sizes_the_tasks_or_the_temperature() -> None:
    sizes = [900, 90, 10]
    assert task_counts(sizes).tolist() == sizes
    assert task_counts(sizes, "uniform").tolist() == [334, 333, 333]
    root = np.sqrt(sizes)
    expected = root / root.sum() * 1000
    assert np.abs(task_counts(sizes, "temperature", 2.0) - expected).max() < 1
    assert task_counts(sizes, "temperature", 1.0).tolist() == sizes
    assert task_counts(sizes, "temperature", 1e9).tolist() == [334, 333, 333]


def test_orders_differ_by_seed_and_epoch_and_mix_the_tasks() -> None:
    orders = [epoch_order([50, 50], seed=s, epoch=e).tolist() for s in range(3) for e in range(3)]
    assert len({tuple(order) for order in orders}) == 9
    firsts = [sum(i < 50 for i in order[:20]) for order in orders]
    assert all(3 <= first <= 17 for first in firsts)


def test_every_order_is_equally_likely() -> None:
    found = Counter(tuple(shuffled(3, seed, "test").tolist()) for seed in range(6000))
    assert len(found) == 6
    assert all(abs(count - 1000) < 150 for count in found.values())  # 5 standard deviations


def test_orders_are_the_same_in_every_version() -> None:
    assert shuffled(8, 0, "what for", 3).tolist() == [2, 4, 1, 7, 0, 3, 6, 5]
    assert epoch_order([4, 2], seed=1, epoch=2, sampling="uniform").tolist() == [1, 2, 5, 3, 4, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sizes": []}, r"sizes: expected at least one example in each task, got \[\]"),
        ({"sizes": [3, 0]}, r"sizes: expected at least one example in each task, got \[3, 0\]"),
        ({"sampling": "random"}, "sampling: expected proportional, uniform or temperature, got 'random'"),
        ({"sampling": "temperature", "temperature": 0}, "temperature: expected a positive number, got 0"),
        ({"sampling": "temperature", "temperature": float("nan")}, "temperature: expected a positive number"),
        ({"epoch": -1}, "epoch: expected 0 or more, got -1"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        epoch_order(**{"sizes": [3, 4], "seed": 0, "epoch": 0, **arguments})
