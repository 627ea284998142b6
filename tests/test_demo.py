"""The shipped tasks: sizes, balance, no text twice; and the demo of each kind of base, by its own recipe."""

import json
import re
from collections import Counter

import pytest
import tiny_bert
import tiny_llama

import polymoe
from polymoe import cli
from polymoe.cli.demo import DEMO, demo_recipe
from polymoe.data import has_labels, read_tasks
from polymoe.models.loading import writes_text
from polymoe.recipe import Recipe

TASKS = read_tasks(DEMO / "tasks")
WRITING = read_tasks(DEMO / "writing")


def words(text):
    return " ".join(re.findall(r"\w+", text.lower()))


def test_demo_has_eight_tasks_of_labels_and_four_of_writing():
    assert len(TASKS) == 8
    assert sorted(WRITING) == ["number", "past", "polite", "question"]


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
    texts = [words(example.input) for example in known + test]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("task", WRITING.values(), ids=lambda task: task.name)
def test_demo_task_of_writing_is_whole_and_clean(task):
    assert (len(task.train), len(task.valid), len(task.test)) == (40, 8, 12)
    assert not has_labels(task)
    for e in task.train + task.valid + task.test:
        assert re.fullmatch(r"[A-Z][A-Za-z,' -]+\.", e.input)
        assert re.fullmatch(r"\d\d?" if task.name == "number" else r"[A-Z][A-Za-z,' -]+[.?]", e.output)
        assert e.input != e.output or e.input.startswith("The gardener cut ")
    if task.name == "polite":
        for e in task.train + task.valid + task.test:
            assert e.output == f"Could you {e.input[0].lower()}{e.input[1:-1]}, please?"


def test_no_text_of_writing_is_there_twice():
    texts = [words(e.input) for task in WRITING.values() for e in task.train + task.valid + task.test]
    assert len(set(texts)) == len(texts) == 240


@pytest.mark.parametrize(
    ("name", "expected"),
    [("recipe.yaml", ("minilm", "mhr", "match")), ("writing.yaml", ("smollm2", "poly", "lm"))],
)
def test_demo_recipe_is_complete(name, expected):
    recipe = Recipe.from_yaml(DEMO / name)
    assert (recipe.base, recipe.method, recipe.objective) == expected
    assert (DEMO / recipe.data).is_dir()
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_the_kind_of_base_chooses_the_recipe(tmp_path):
    bert, llama = tiny_bert.write_bert(tmp_path / "bert"), tiny_llama.write_llama(tmp_path / "llama")
    assert (writes_text(bert), writes_text(llama)) == (False, True)
    assert demo_recipe(str(bert)).objective == "match"
    recipe = demo_recipe(str(llama), "lora", seed=3)
    assert (recipe.objective, recipe.method, recipe.training.seed) == ("lm", "lora", 3)
    assert recipe.dtype == ("bfloat16" if polymoe.get_isa() == "avx512bf16" else "float32")


def test_demo_of_a_base_that_writes_shows_before_and_after(tmp_path, capsys):
    base = tiny_llama.write_llama(tmp_path / "base", max_position_embeddings=160)
    out = tmp_path / "run"
    for _ in range(2):  # the second takes the place of the first
        cli.main(["demo", "--base", str(base), "--output", str(out)])
    text = capsys.readouterr().out
    for task in WRITING.values():
        for e in task.test[:2]:
            assert f"{task.name}: {e.input}\n  before: " in text
    assert text.count("\n  after:  ") == 2 * 4 * 2
    assert f'polymoe generate {out} --task question --prompt "The bus stops here."' in text
    summary = json.loads((out / "summary.json").read_text())
    before, after = summary["evaluation_before"]["mean"], summary["evaluation"]["mean"]
    assert after["loss"] < before["loss"] - 1  # bytes of English, and what ends a text
    assert summary["evaluation"]["tasks"]["past"]["n"] == 12
    shown = [" ".join(row.split("│")[1:-1]).split() for row in text.splitlines() if row.startswith("│")]
    last = next(row for row in reversed(shown) if row[0] == "mean")
    metrics = list(after)
    assert last[1:3] == [f"{before[metrics[0]]:.3f}", f"{after[metrics[0]]:.3f}"]
    at = 2 + metrics.index("rougeL")
    assert last[at : at + 2] == [f"{before['rougeL']:.3f}", f"{after['rougeL']:.3f}"]
