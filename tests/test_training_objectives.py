"""Objectives: targets, losses against plain NumPy, predictions, and a state that comes back as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_base import classes, make_model, make_trainer, numbers, texts

from polymoe.batch import Batch
from polymoe.data import read_tasks
from polymoe.files import write_json
from polymoe.tape import Tape, data_of
from polymoe.training import Classify, Match, Regress, load_objective, make_objective
from polymoe.training.objectives.embedding import embed

DATA = {"classify": classes, "match": texts, "regress": numbers}
INDICES = np.array([0, 30, 5, 40, 1, 37])


def prepared(tmp_path: Path, objective: Any, data: Any, **settings: Any) -> tuple[Any, Any, Any]:
    """Model, prepared objective and encoded training split."""
    model = make_model(tmp_path / "base", **settings)
    tasks = read_tasks(data)
    objective.prepare(model, tasks)
    return model, objective, objective.encode(model, tasks, "train")


def shaken(objective: Any, seed: int = 0) -> None:
    """Random heads."""
    rng = np.random.default_rng(seed)
    for _, p in objective.named_parameters():
        p.data += rng.normal(size=p.shape).astype(np.float32)


def softmax_loss(scores: np.ndarray, label: int) -> float:
    return float(np.log(np.exp(scores - scores[label]).sum()))


def test_classify_is_a_softmax_over_the_tasks_own_labels(tmp_path: Path) -> None:
    model, objective, split = prepared(tmp_path, Classify(), classes())
    assert objective.labels == {"animal": ("cat", "dog"), "colour": ("blue", "red")}
    shaken(objective)
    loss = objective.loss(model, objective.batch(model, split, INDICES, seed=0, step=0))
    vectors = model.encode(
        [split.examples[i].input for i in INDICES], [split.examples[i].task for i in INDICES]
    )
    scores = vectors @ objective.weight.data.T + objective.bias.data
    expected = []
    for row, i in zip(scores, INDICES, strict=True):
        task, label = split.examples[i].task, split.examples[i].output
        own = {"animal": row[:2], "colour": row[2:]}[task]
        expected.append(softmax_loss(own, objective.labels[task].index(label)))
    np.testing.assert_allclose(loss.per_example, expected, rtol=1e-4, atol=1e-5)
    assert float(data_of(loss.mean)) == pytest.approx(np.mean(expected), rel=1e-4)


def test_classify_leaves_the_heads_of_absent_tasks_alone(tmp_path: Path) -> None:
    model, objective, split = prepared(tmp_path, Classify(), classes())
    model.train()
    with Tape() as tape:
        loss = objective.loss(model, objective.batch(model, split, np.arange(5), seed=0, step=0))
    tape.backward(loss.mean)
    assert np.abs(objective.weight.grad[:2]).max() > 0
    assert not objective.weight.grad[2:].any()


def test_match_scores_by_cosine_against_the_tasks_labels(tmp_path: Path) -> None:
    model, objective, split = prepared(tmp_path, Match(), classes())
    assert objective.labels == {"animal": ("cat", "dog"), "colour": ("blue", "red")}
    batch = objective.batch(model, split, INDICES, seed=0, step=0)
    assert batch.n_examples == len(INDICES) + 4
    loss = objective.loss(model, batch)

    def unit(rows: list[str], task: str) -> np.ndarray:
        v = model.encode(rows, task)
        return v / np.linalg.norm(v, axis=1, keepdims=True)

    expected = []
    for i in INDICES:
        e = split.examples[i]
        own = objective.labels[e.task]
        scores = 20 * (unit([e.input], e.task) @ unit(list(own), e.task).T)[0]
        expected.append(softmax_loss(scores, own.index(e.output)))
    np.testing.assert_allclose(loss.per_example, expected, rtol=1e-3, atol=1e-4)


def test_match_on_free_text_takes_negatives_of_the_same_task_once_each(tmp_path: Path) -> None:
    data = texts()
    data["animal"]["train"] = [
        (text, out if i > 4 else "the dog") for i, (text, out) in enumerate(data["animal"]["train"])
    ]
    model, objective, split = prepared(tmp_path, Match(), data)
    assert objective.labels == {"animal": None, "colour": None}
    same = [i for i, e in enumerate(split.examples) if e.output == "the dog"]
    assert len(same) > 1
    animals, colours = [*same, 10, 11], [30, 31, 32]
    batch = objective.batch(model, split, np.array(animals + colours), seed=0, step=0)
    assert batch.n_examples == len(animals + colours) + 3 + 3
    starts, ends, columns = batch.targets.starts, batch.targets.ends, batch.targets.labels
    assert starts.tolist() == [0] * len(animals) + [3] * 3
    assert ends.tolist() == [3] * len(animals) + [6] * 3
    assert len(set(columns[: len(same)].tolist())) == 1
    assert sorted(set(columns.tolist())) == list(range(6))
    assert batch.task_ids[-6:].tolist() == [0] * 3 + [1] * 3
    assert len(set(batch.example_ids[-6:].tolist())) == 6
    again = objective.batch(model, split, np.array(animals), seed=0, step=0)
    assert set(again.example_ids.tolist()) <= set(
        batch.example_ids.tolist()
    )  # noise of a text goes with the text


@pytest.mark.parametrize("objective", list(DATA))
def test_loss_gradient_is_the_slope(tmp_path: Path, objective: str) -> None:
    """Along a random direction in all parameters; through inputs and candidates alike for match."""
    model, it, split = prepared(tmp_path, make_objective(objective), DATA[objective](), init_weights=False)
    shaken(it)
    batch = it.batch(model, split, INDICES, seed=0, step=3)
    parameters = [p for _, p in [*model.adapter_parameters(), *it.named_parameters()]]
    with Tape() as tape:
        loss = it.loss(model, batch)
    tape.backward(loss.mean)
    rng = np.random.default_rng(1)
    # along the gradient itself, blurred: a slope large enough to see in float32
    directions = [p.grad * rng.uniform(0.5, 1.5, p.shape).astype(np.float32) for p in parameters]
    slope = sum(float((d * p.grad).sum()) for d, p in zip(directions, parameters, strict=True))
    size = 2e-2 / np.sqrt(slope)
    values = []
    for sign in (1, -2, 1):
        for d, p in zip(directions, parameters, strict=True):
            p.data += np.float32(sign * size) * d
        if sign != 1 or len(values) == 0:
            values.append(float(data_of(it.loss(model, batch).mean)))
    assert (values[0] - values[1]) / (2 * size) == pytest.approx(slope, rel=2e-2)


def test_match_has_a_zero_shot_figure_that_is_the_bases(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, "match", epochs=1)
    summary = trainer.train()
    base = make_model(tmp_path / "base", "lora").base
    right, n = 0, 0
    for task, data in classes().items():
        labels = np.array(trainer.objective.labels[task])  # type: ignore[attr-defined]
        scores = base.encode([text for text, _ in data["test"]]) @ base.encode(labels.tolist()).T
        right += int((labels[scores.argmax(axis=1)] == [y for _, y in data["test"]]).sum())
        n += len(data["test"])
    assert summary["evaluation_before"]["mean"]["accuracy"] == pytest.approx(right / n)
    assert make_trainer(tmp_path, "classify", output="other", epochs=1).train()["evaluation_before"] is None


def test_match_keeps_its_scale_in_range(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, "match", epochs=2, head_learning_rate=5.0, warmup_ratio=0.0)
    seen = []
    constrain = trainer.objective.constrain

    def spy() -> None:
        constrain()
        seen.append(float(trainer.objective.log_scale.data[0]))  # type: ignore[attr-defined]

    trainer.objective.constrain = spy  # type: ignore[method-assign]
    trainer.train()
    assert min(seen) >= 0.0
    assert max(seen) <= np.float32(np.log(100))
    assert {0.0, float(np.float32(np.log(100)))} & set(seen)


def test_match_trains_retrieval(tmp_path: Path) -> None:
    summary = make_trainer(
        tmp_path, "match", texts(), epochs=8, learning_rate=1e-2, batch_size=16, batch_tokens=400
    ).train()
    assert summary["evaluation"]["mean"]["accuracy"] >= summary["evaluation_before"]["mean"]["accuracy"]
    assert summary["evaluation"]["mean"]["accuracy"] > 0.2  # one of ten


def test_match_on_free_text_needs_candidates_to_predict(tmp_path: Path) -> None:
    model, objective, _ = prepared(tmp_path, Match(), texts())
    with pytest.raises(ValueError, match="candidates: expected texts to choose from"):
        objective.predict(model, ["the cat"], "animal")
    found = objective.predict(model, ["the cat"], "animal", ["a red house", "the cat"])[0]
    assert found.output == "the cat"
    assert found.scores["the cat"] == pytest.approx(1.0, abs=1e-5)


def test_regress_predicts_numbers(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, "regress", numbers(), epochs=20, learning_rate=5e-3)
    summary = trainer.train()
    scores = summary["evaluation"]["tasks"]["colour"]
    assert scores["pearson"] > 0.7
    assert scores["spearman"] > 0.6
    assert summary["evaluation"]["mean"].keys() == {"pearson", "spearman", "mse"}
    found = trainer.objective.predict(trainer.model, ["the cat sees a small red house"], "colour")[0]
    assert found.score < -20
    assert found.output == f"{found.score:.6g}"


def test_regress_standardises_by_training_numbers(tmp_path: Path) -> None:
    model, objective, split = prepared(tmp_path, Regress(), numbers())
    batch = objective.batch(model, split, INDICES, seed=0, step=0)
    for value, i in zip(batch.targets.values, INDICES, strict=True):
        e = split.examples[i]
        own = [float(other.output) for other in split.examples if other.task == e.task]
        assert value == pytest.approx((float(e.output) - np.mean(own)) / np.std(own), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    ("objective", "rows", "message"),
    [
        ("classify", [("the cat", "x"), ("a dog", "x"), ("a cat", "x")], "at least two different outputs"),
        ("match", [("the cat", "x"), ("a dog", "x"), ("a cat", "x")], "at least two different outputs"),
        ("regress", [("the cat", 1), ("a dog", 1), ("a cat", 1)], "at least two different numbers"),
        (
            "regress",
            [("the cat", "1"), ("a dog", "many"), ("a cat", "2")],
            "expected a finite number, got 'many'",
        ),
    ],
)
def test_data_that_teach_nothing_are_refused_with_the_task(
    tmp_path: Path, objective: str, rows: list[Any], message: str
) -> None:
    model = make_model(tmp_path / "base")
    with pytest.raises(ValueError, match=f"animal.*{message}"):
        make_objective(objective).prepare(model, read_tasks({"animal": {"train": rows, "valid": rows}}))


@pytest.mark.parametrize("objective", list(DATA))
def test_objective_comes_back_as_it_was_saved(tmp_path: Path, objective: str) -> None:
    model, it, split = prepared(tmp_path, make_objective(objective), DATA[objective]())
    it.max_length = 6
    shaken(it)
    it.save(tmp_path)
    other = load_objective(model, tmp_path)
    assert type(other) is type(it)
    assert other.settings() == it.settings()
    words = ["the small cat sees a big red house", "a dog"]
    candidates = ["cat", "red"] if objective == "match" else None
    tasks = ["colour", "animal"]
    assert other.predict(model, words, tasks, candidates) == it.predict(model, words, tasks, candidates)
    assert other.tokenizer(model).max_length == 6
    assert other.evaluate(model, split) == it.evaluate(model, split)


def test_broken_objective_files_are_refused(tmp_path: Path) -> None:
    model, objective, _ = prepared(tmp_path, Classify(), classes())
    with pytest.raises(FileNotFoundError):
        load_objective(model, tmp_path)
    objective.save(tmp_path)
    settings = json.loads((tmp_path / "objective.json").read_text())
    heads = (tmp_path / "heads.safetensors").read_bytes()
    (tmp_path / "heads.safetensors").write_bytes(heads[:-3])
    with pytest.raises(ValueError, match=r"heads\.safetensors"):
        load_objective(model, tmp_path)
    (tmp_path / "heads.safetensors").write_bytes(heads)
    write_json(tmp_path / "objective.json", settings | {"name": "guess"})
    with pytest.raises(ValueError, match="objective: expected one of"):
        load_objective(model, tmp_path)
    labels = {**settings["labels"], "animal": ["cat", "dog", "cow"]}
    write_json(tmp_path / "objective.json", settings | {"labels": labels})
    with pytest.raises(ValueError, match="weight: expected shape"):
        load_objective(model, tmp_path)
    write_json(tmp_path / "objective.json", settings | {"tasks": ["animal", "shape"]})
    with pytest.raises(KeyError, match="got 'shape'"):
        load_objective(model, tmp_path)
    (tmp_path / "objective.json").write_text("{")
    with pytest.raises(ValueError, match="expected JSON"):
        load_objective(model, tmp_path)


def test_unknown_tasks_and_empty_requests(tmp_path: Path) -> None:
    model, objective, _ = prepared(tmp_path, Classify(), {"animal": classes()["animal"]})
    with pytest.raises(KeyError, match="got 'shape'"):
        objective.predict(model, ["the cat"], "shape")
    with pytest.raises(KeyError, match=r"expected one of \['animal'\], got 'colour'"):
        objective.predict(model, ["the cat"], "colour")  # the adapter knows it, the heads do not
    with pytest.raises(ValueError, match="task: expected 1 names, got 2"):
        objective.predict(model, ["the cat"], ["animal", "animal"])
    assert objective.predict(model, [], "animal") == []
    empty = objective.encode(model, {}, "test")
    with pytest.raises(ValueError, match="at least one example"):
        objective.evaluate(model, empty)


def test_an_output_that_training_never_saw_counts_as_wrong(tmp_path: Path) -> None:
    data = classes()
    data["animal"]["test"] = [("the cat", "cow"), ("a cow", "cow")]
    trainer = make_trainer(tmp_path, data=data, epochs=1)
    assert trainer.train()["evaluation"]["tasks"]["animal"]["accuracy"] == 0.0


def test_any_accepted_reference_counts_as_right(tmp_path: Path) -> None:
    data = classes()
    data["animal"]["test"] = [("the cat sees", ["horse", "cat", "dog"])] * 3
    assert (
        make_trainer(tmp_path, data=data, epochs=1).train()["evaluation"]["tasks"]["animal"]["accuracy"]
        == 1.0
    )


def test_long_and_empty_texts_are_counted(tmp_path: Path) -> None:
    data = classes()
    data["animal"]["train"] = [("the cat " * 50, "cat"), ("", "dog"), *data["animal"]["train"]]
    summary = make_trainer(tmp_path, data=data, max_steps=2, max_length=5).train()
    assert summary["truncated_texts"]["animal"] > summary["truncated_texts"]["colour"] > 0
    assert summary["empty_texts"] == {"animal": 1, "colour": 0}


def test_embeddings_come_in_the_order_of_the_texts(tmp_path: Path) -> None:
    model, _, split = prepared(tmp_path, Classify(), classes())
    vectors = embed(model, split.tokens, split.task_ids, batch_tokens=30)
    for i in (0, 17, 50):
        token_ids, cu_seqlens = split.tokens.take(np.array([i]))
        alone = model.embed(Batch(cu_seqlens, token_ids, split.task_ids[[i]]))
        np.testing.assert_allclose(vectors[i], alone[0], atol=1e-6)


@pytest.mark.parametrize("objective", ["classify", "match"])
def test_training_on_refuses_labels_that_the_objective_does_not_know(tmp_path: Path, objective: str) -> None:
    model, known, _ = prepared(tmp_path, make_objective(objective), classes())
    data = classes()
    data["animal"]["train"] = [("the cow", "cow"), ("a cow", "cow"), *data["animal"]["train"]]
    with pytest.raises(ValueError, match=r"animal: .*expected one of \['cat', 'dog'\], got 'cow'"):
        make_trainer(tmp_path, known, data, model=model).train()
    model = make_model(tmp_path / "base")
    only = make_objective(objective)
    only.prepare(model, read_tasks({"animal": classes()["animal"]}))
    with pytest.raises(KeyError, match=r"expected one of \['animal'\], got 'colour'"):
        make_trainer(tmp_path, only, model=model)
