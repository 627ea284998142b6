"""Shots: how many, of which outputs, and that a seed and a name decide."""

from collections import Counter

import pytest

from polymoe.data import draw_shots, read_tasks


def task(n_valid=12, **sizes):
    """A task with so many training examples of each output."""
    rows = [(f"{output} {i}", output) for output, n in sizes.items() for i in range(n)]
    valid = [(f"v{i}", list(sizes)[i % len(sizes)]) for i in range(n_valid)]
    return read_tasks({"t": {"train": rows, "valid": valid, "test": [("x", "a")]}})["t"]


def outputs(examples):
    return dict(Counter(e.output for e in examples))


@pytest.mark.parametrize(
    ("sizes", "shots", "expected"),
    [
        ({"a": 50, "b": 50}, 32, {"a": 16, "b": 16}),
        ({"a": 90, "b": 30}, 32, {"a": 24, "b": 8}),
        ({"a": 99, "b": 1}, 10, {"a": 9, "b": 1}),
        ({"a": 96, "b": 2, "c": 2}, 3, {"a": 1, "b": 1, "c": 1}),
        ({"a": 3, "b": 4}, 7, {"a": 3, "b": 4}),
    ],
)
def test_shots_have_every_output_and_its_share(sizes, shots, expected):
    assert outputs(draw_shots(task(**sizes), shots).train) == expected


def test_fewer_shots_than_outputs_have_different_ones():
    drawn = draw_shots(task(**{f"o{i}": 5 for i in range(9)}), 4)
    assert set(outputs(drawn.train).values()) == {1}


def test_shots_are_drawn_by_the_seed_and_stay_in_order():
    whole = task(a=40, b=40)
    first, again, other = (draw_shots(whole, 10, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.train != other.train
    assert list(first.train) == [e for e in whole.train if e in first.train]
    assert first.test == whole.test


def test_validation_is_as_large_as_the_shots_or_as_said():
    whole = task(a=40, b=40)
    assert len(draw_shots(whole, 4).valid) == 4
    assert outputs(draw_shots(whole, 4).valid) == {"a": 2, "b": 2}
    assert len(draw_shots(whole, 4, 6).valid) == 6
    assert draw_shots(whole, 40).valid == whole.valid


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((9,), ValueError, r"shots: expected 1 to 8 \(the training examples of t\), got 9"),
        ((0,), ValueError, "shots: expected 1 to 8"),
        ((2.0,), TypeError, "shots: expected an integer, got 2.0"),
        ((2, 0), ValueError, "n_valid: expected at least 1, got 0"),
    ],
)
def test_wrong_numbers_of_shots_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        draw_shots(task(a=4, b=4), *arguments)


def test_a_mapping_may_say_where_each_task_is(tmp_path):
    for folder, name in (("one", "t"), ("two", "t"), ("two", "u")):
        (tmp_path / folder).mkdir(exist_ok=True)
        line = f'{{"input": "{folder}", "output": "yes"}}\n'
        (tmp_path / folder / f"{name}.train.jsonl").write_text(line * 2)
    tasks = read_tasks({"t": tmp_path / "one", "u": tmp_path / "two"})
    assert [task.train[0].input for task in tasks.values()] == ["one", "two"]
    with pytest.raises(KeyError, match=r"expected one of .*'t'.*, got 'w'"):
        read_tasks({"w": tmp_path / "one"})
