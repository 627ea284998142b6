"""Splits and what the outputs of a task are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from real import real_tasks

from polymoe.data import Example, TaskData, has_labels, label_ids, labels, numbers, read_tasks, split_task


def examples(n: int, outputs: list[str] | None = None) -> list[Example]:
    outputs = outputs or ["x"]
    picked = [outputs[i % len(outputs)] for i in range(n)]
    return [Example(str(i), output, (output,), i, "t", f"file:{i + 1}") for i, output in enumerate(picked)]


def rows(part: Any) -> list[int]:
    return [example.example_id for example in part]


@given(n=st.integers(2, 300), seed=st.integers(-3, 2**40), name=st.text(max_size=8))
def test_split_holds_out_a_tenth_and_loses_nothing(n: int, seed: int, name: str) -> None:
    task = split_task(name, {"train": examples(n), "test": examples(3)}, seed)
    assert len(task.valid) == max(1, n // 10)
    assert sorted(rows(task.train) + rows(task.valid)) == list(range(n))
    assert rows(task.train) == sorted(rows(task.train))
    assert rows(task.test) == [0, 1, 2]
    assert split_task(name, {"train": examples(n)}, seed).valid == task.valid


def test_held_out_examples_depend_on_seed_and_name_alone() -> None:
    def held_out(seed: int, name: str) -> list[int]:
        return rows(split_task(name, {"train": examples(40)}, seed).valid)

    assert held_out(0, "a") == [23, 26, 27, 29]
    assert held_out(0, "a") != held_out(1, "a")
    assert held_out(0, "a") != held_out(0, "b")


def test_a_given_validation_split_is_used_as_it_is() -> None:
    task = split_task("t", {"train": examples(1), "valid": examples(4)})
    assert (rows(task.train), rows(task.valid)) == ([0], [0, 1, 2, 3])


@pytest.mark.parametrize(
    ("n", "n_test"), [(2, 0), (3, 0), (4, 1), (160, 40), (399, 99), (400, 100), (1000, 100)]
)
def test_a_whole_task_is_tested_on_its_last_quarter_or_hundred(n: int, n_test: int) -> None:
    task = split_task("t", {"all": examples(n)}, seed=3)
    assert rows(task.test) == list(range(n - n_test, n))
    assert sorted(rows(task.train) + rows(task.valid)) == list(range(n - n_test))
    assert len(task.valid) == max(1, (n - n_test) // 10)


def test_a_test_split_alone_is_a_task() -> None:
    assert split_task("t", {"test": examples(2)}) == TaskData("t", (), (), tuple(examples(2)))


def test_unknown_split_is_refused() -> None:
    task = split_task("t", {"train": examples(3)})
    assert task.split("train") == task.train
    with pytest.raises(ValueError, match="split: expected train, valid or test, got 'name'"):
        task.split("name")


def test_labels_are_the_same_for_every_seed() -> None:
    for seed in range(20):
        task = split_task("t", {"train": examples(10, ["b", "a", "c", "b", "b"]), "test": examples(1)}, seed)
        assert labels(task) == ("a", "b", "c")
        assert label_ids(task.test, labels(task)).tolist() == [-1]
        expected = [("a", "b", "c").index(example.output) for example in task.train]
        assert label_ids(task.train, labels(task)).tolist() == expected
    assert label_ids([], ("a",)).dtype == np.int64


def test_one_label_only_is_refused() -> None:
    task = split_task("t", {"train": examples(10, ["same"])})
    with pytest.raises(ValueError, match=r"t: expected at least two different outputs, got \['same'\]"):
        labels(task)


@pytest.mark.parametrize(
    ("n", "distinct", "expected"),
    [(4, 2, True), (40, 20, True), (39, 20, False), (100, 21, False), (105, 21, True), (30, 30, False),
     (1000, 200, True), (9000, 201, False)],
)  # fmt: skip
def test_few_outputs_that_come_often_are_labels(n: int, distinct: int, expected: bool) -> None:
    outputs = [f"output {i}" for i in range(distinct)]
    assert has_labels(split_task("t", {"train": examples(n, outputs)})) is expected


def test_real_tasks_are_told_apart() -> None:
    superni = read_tasks(real_tasks("superni"))
    assert {name.split("_")[0] for name, task in superni.items() if has_labels(task)} == {
        "task073", "task363", "task875",
    }  # fmt: skip
    assert all(has_labels(task) for task in read_tasks(real_tasks("superglue")).values())


def test_numbers_are_read_exactly_and_others_are_named() -> None:
    values = [0.1, -3.0, 1e-7, 2.0**60]
    task = read_tasks({"t": {"valid": [("x", value) for value in values]}})["t"]
    assert numbers(task.valid).tolist() == values
    for wrong in ("three", "nan", "inf", ""):
        with pytest.raises(ValueError, match=f"t: file:2: output: expected a finite number, got '{wrong}'"):
            numbers(examples(2, ["1", wrong]))
