"""Routing statistics while training: the lines, the faults that are told, and that no bit changes."""

import json
import warnings

import numpy as np
import pytest
from training_base import TASKS, base_folder, classes, make_model, make_trainer

from polymoe.adapters import adapt, measures
from polymoe.adapters.faults import Fault, find_faults
from polymoe.adapters.statistics import RouterStatistics
from polymoe.models import load_base
from polymoe.training import RoutingWarning, TrainingConfig


def lines(trainer):
    """The lines with routing statistics."""
    records = [json.loads(line) for line in trainer.folder.metrics.read_text().splitlines()]
    return [record for record in records if "routing" in record]


def router(weights, name="layer", axis="group", rows=1):
    """Statistics of one router with these weights [T, S]."""
    w = np.asarray(weights, np.float64)[:, None]
    counts = np.full(len(w), rows)
    return RouterStatistics(name, (name,), axis, counts, w, (w > 0).astype(np.int64), measures.entropy(w))


def lean(trainer, skill, by):
    """Shift the logits of one skill in every router."""
    for name, p in trainer.model.adapter_parameters():
        if name.endswith("router.logits"):
            p.data[..., skill] += by


def six_tasks(tmp_path, **settings):
    """A trainer of six tasks over three skills, whose router hardly learns."""
    names = [f"{task}{i}" for i in range(3) for task in TASKS]
    data = {name: classes()[name[:-1]] for name in names}
    model = adapt(load_base(base_folder(tmp_path / "base")), "poly", names, r=2, n_skills=3)
    return make_trainer(tmp_path, data=data, model=model, router_learning_rate=1e-3, **settings)


@pytest.mark.parametrize("method", ["poly", "mola", "smear"])
def test_each_evaluation_leaves_a_line(tmp_path, method):
    trainer = make_trainer(tmp_path, method=method, max_steps=6, eval_steps=2)
    trainer.train()
    found = lines(trainer)
    assert [(line["step"], line["split"]) for line in found] == [
        (2, "valid"),
        (4, "valid"),
        (6, "valid"),
        (6, "test"),
    ]
    for line in found:
        routing = line["routing"]
        assert set(routing["routers"]) == set(trainer.model.adapter.layers)
        for row in routing["routers"].values():
            assert set(row) == {"entropy", "effective_skills", "usage", "least_load"}
            assert 0 <= row["entropy"] <= 1
        assert {"load_balance", "variation", *row} <= set(routing["mean"])
        assert ("discreteness" in routing["mean"]) == (method == "poly")


def test_a_line_says_what_the_table_says(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=4, eval_steps=4)
    trainer.train()
    layer = next(iter(trainer.model.adapter.layers.values()))
    gates = 1 / (1 + np.exp(-layer.router.logits.data.astype(np.float64)))
    row = lines(trainer)[-1]["routing"]["routers"][layer.name]
    assert row["entropy"] == pytest.approx(measures.entropy(gates).mean(), abs=1e-4)
    assert row["usage"] == pytest.approx(
        measures.usage(gates / gates.sum(-1, keepdims=True)).mean(), abs=1e-4
    )


@pytest.mark.parametrize("method", ["lora", "private"])
def test_nothing_is_said_of_routers_that_learn_nothing(tmp_path, method):
    model = make_model(tmp_path / "base", method)
    trainer = make_trainer(tmp_path, model=model, max_steps=2, eval_steps=1)
    trainer.train()
    assert lines(trainer) == []


@pytest.mark.parametrize("method", ["poly", "mola"])
def test_statistics_change_no_bit(tmp_path, method):
    bits = []
    for on in (True, False):
        trainer = make_trainer(
            tmp_path, method=method, output=f"run{on}", max_steps=6, eval_steps=2, routing_statistics=on
        )
        trainer.train()
        bits.append(trainer.parameters.data.tobytes())
        assert bool(lines(trainer)) == on
    assert bits[0] == bits[1]


def test_a_resumed_run_may_have_them_on_or_off(tmp_path):
    make_trainer(tmp_path, max_steps=4, eval_steps=2, routing_statistics=False).train()
    again = make_trainer(tmp_path, max_steps=4, eval_steps=2)
    again.train(resume=True)
    assert [line["split"] for line in lines(again)] == ["test"]


def test_faults_are_found():
    even, sure = [[0.3, 0.7], [0.7, 0.3]] * 2, [[1, 0], [0, 1]] * 2
    assert find_faults([router(even), router(sure)]) == set()
    dead = router([[0.5, 0.499, 0.001], [0.49, 0.5, 0.01]] * 3, "a")
    assert find_faults([dead, router(even)]) == {Fault("dead", "a", 2)}
    collapsed = router([[0.02, 0.98], [0.1, 0.9]] * 2, "b")
    assert find_faults([collapsed, router(even)]) == {Fault("takes all", "b", 1)}
    alike = router([[0.5, 0.5], [0.504, 0.496]], "c")
    assert find_faults([alike]) == {Fault("alike", "c")}


def test_what_is_no_fault_is_none():
    alike, even = router([[0.5, 0.5]] * 2), [[0.3, 0.7], [0.7, 0.3]]
    assert find_faults([alike, router(even)]) == set()  # half of them only
    assert find_faults([router([[0.5, 0.5]] * 2, axis="token", rows=99)]) == set()
    assert find_faults([router([[1.0]] * 4)]) == set()  # one skill
    assert find_faults([router([[0.5, 0.5]])]) == set()  # one task
    assert find_faults([router([[1, 0], [1, 0.1], [1, 0]])]) == set()  # three tasks, two skills
    lopsided = [[1, 0], [1, 0]]
    assert find_faults([router(lopsided, axis="token", rows=7)]) == set()  # too few tokens to tell
    assert find_faults([router(lopsided, axis="token", rows=8)]) == {Fault("takes all", "layer", 0)}


def test_a_dead_skill_is_told_once_with_layers_and_remedy(tmp_path):
    trainer = six_tasks(tmp_path, max_steps=70, eval_steps=5, warmup_steps=4)
    lean(trainer, 2, -20)
    for name, p in trainer.model.adapter_parameters():  # tasks that differ otherwise
        if name.endswith("router.logits"):
            p.data[0, :, 0] += 1
    with pytest.warns(RoutingWarning) as told:
        trainer.train()
    assert len(told) == 1
    text = str(told[0].message)
    layers = list(trainer.model.adapter.layers)
    assert text.startswith("step 60: skills that hardly anything uses")  # at 55 for the first time
    assert f"{layers[0]} (2)" in text
    assert f"and {len(layers) - 3} more" in text
    assert "a lower router_learning_rate (now 0.001), gate_dropout (now 0) or fewer n_skills" in text


def test_one_skill_that_takes_all_is_told(tmp_path):
    trainer = six_tasks(tmp_path, max_steps=56, eval_steps=56)
    for skill in (0, 2):
        lean(trainer, skill, -20)
    with pytest.warns(RoutingWarning, match="one skill takes more than 90% of everything"):
        trainer.train()


def test_tasks_that_are_not_trained_are_not_judged(tmp_path):
    tasks = [*TASKS, "x", "y"]
    model = adapt(load_base(base_folder(tmp_path / "base")), "poly", tasks, r=2, n_skills=2)
    trainer = make_trainer(tmp_path, model=model, max_steps=56, eval_steps=56)
    for name, p in model.adapter_parameters():
        if name.endswith("router.logits"):
            p.data[2:] += [20, -20]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.train()
    assert len(lines(trainer)) == 2


def test_tasks_that_stay_alike_are_told(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=60, eval_steps=30, router_learning_rate=1e-6)
    with pytest.warns(RoutingWarning, match=r"alike .* by 4 of 4 routers.*higher router_learning_rate"):
        trainer.train()


@pytest.mark.parametrize("setting", [{"max_steps": 40}, {"max_steps": 60, "routing_statistics": False}])
def test_nothing_is_told_early_or_when_off(tmp_path, setting):
    trainer = make_trainer(tmp_path, eval_steps=10, router_learning_rate=1e-6, **setting)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.train()


@pytest.mark.parametrize("method", ["poly", "mhr", "mola", "c-poly"])
def test_a_healthy_run_is_quiet(tmp_path, method):
    model = make_model(tmp_path / "base", method, **({"n_splits": 2} if method == "mhr" else {}))
    trainer = make_trainer(tmp_path, model=model, max_steps=80, eval_steps=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.train()


def test_the_switch_is_a_bool():
    with pytest.raises(TypeError, match="routing_statistics: expected a bool, got 1"):
        TrainingConfig(routing_statistics=1)
