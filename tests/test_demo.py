"""The shipped tasks: sizes, balance, no text twice; and that the demo's recipe names real settings."""

import re
from collections import Counter

import pytest

from polymoe.cli import DEMO
from polymoe.data import has_labels, read_tasks
from polymoe.recipe import Recipe

TASKS = read_tasks(DEMO / "tasks")


def test_demo_has_eight_tasks():
    assert len(TASKS) == 8


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_demo_task_is_large_balanced_and_clean(task):
    known, test = task.train + task.valid, task.test
    assert len(known) >= 60
    assert len(test) >= 30
    assert has_labels(task)
    for part in (known, test):
        counts = Counter(example.output for example in part)
        assert set(counts) == {example.output for example in known}
        assert max(counts.values()) <= 2 * min(counts.values())
    texts = [" ".join(re.findall(r"\w+", example.input.lower())) for example in known + test]
    assert len(set(texts)) == len(texts)


def test_demo_recipe_is_complete():
    recipe = Recipe.from_yaml(DEMO / "recipe.yaml")
    assert (recipe.base, recipe.method, recipe.objective) == ("minilm", "mhr", "match")
    assert Recipe.from_dict(recipe.to_dict()) == recipe
