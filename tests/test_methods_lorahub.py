"""LoRAHub: weights by task that a search finds, not a gradient."""

import json
import sys
from signal import SIGINT, raise_signal

import numpy as np
import pytest
from test_adapters_layers import fill
from test_recipe_stages import folder, recipe  # noqa: F401
from training_base import TASKS, make_model, make_trainer

from polymoe.adapters import adapt_linear
from polymoe.cli import main
from polymoe.data import read_tasks
from polymoe.files import read_safetensors
from polymoe.interop.export import export_task
from polymoe.training import Callback, TrainingConfig, TrainingInterrupted, load_run
from polymoe.training.search import BOUND, PENALTY, choose, search, searched_tables

SEARCH = {"epochs": 8, "batch_size": 8, "learning_rate": 1e-2, "search_steps": 12, "search_examples": 16}
QUICK = SEARCH | {"epochs": 1}


def lines(run):
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["search"] for line in found if "search" in line]


def same_adapters(*runs):
    files = [run / "adapter" / "adapter_model.safetensors" for run in runs]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_factors_are_added_up_with_raw_weights():
    made = adapt_linear(fill(4, 6, phi=0.2), None, "lorahub", n_tasks=2, n_skills=3, init_weights=False)
    x, w = fill(3, 2, 6, phi=0.1), np.array([[0.5, -1.0, 2.0], [0.0, 1.0, 0.0]])
    base = x @ fill(4, 6, phi=0.2).T
    np.testing.assert_array_equal(made.forward(x, 0)[0], made.forward(x, 1)[0])
    np.testing.assert_allclose(made.forward(x, 0)[0], base, rtol=1e-12)
    made.adapter.router.coefficients.data[:, 0] = w
    A, B = (p.data for p in (made.adapter.experts.lora_A, made.adapter.experts.lora_B))
    expected = base + np.einsum("bld,bs,srd,bt,tro->blo", x, w[[1, 0, 1]], A, w[[1, 0, 1]], B) / 8
    np.testing.assert_allclose(made.forward(x, [1, 0, 1])[0], expected, rtol=1e-11)
    _, saved = made.forward(x, [1, 0, 1])
    made.backward(saved, expected)
    assert all(p.grad is None for _, p in made.named_parameters())


def test_lorahub_finds_weights_that_lower_the_loss(folder):  # noqa: F811
    summary = recipe(folder, "lorahub", training=SEARCH).train(folder / "run", progress=None)
    run = load_run(folder / "run")
    assert summary["steps"] == 0 and run.evaluate() == summary["evaluation"]
    (table,) = searched_tables(run.model.adapter)
    assert table.shape == (2, 1, 2) and table.data.any() and np.abs(table.data).max() <= BOUND
    records = lines(folder / "run")
    for task in TASKS:
        own = [record for record in records if record["task"] == task]
        assert [record["evaluation"] for record in own] == list(range(1, len(own) + 1))
        assert len(own) <= SEARCH["search_steps"]
        assert own[-1]["best"] == min(record["value"] for record in own) <= own[0]["value"]
    assert records[-1]["best"] < next(r["value"] for r in records if r["task"] == TASKS[-1])


def test_the_value_is_the_loss_and_the_penalty(folder):  # noqa: F811
    training = QUICK | {"search_examples": 1000, "search_steps": 3}
    recipe(folder, "lorahub", training=training).train(folder / "run", progress=None)
    run = load_run(folder / "run")
    (table,), values = searched_tables(run.model.adapter), {}
    split = run.objective.encode(run.model, read_data(folder), "train")
    for task in TASKS:
        indices = choose(split, task, 1000, 0)
        assert len(indices) == split.sizes[task]
        batch = run.objective.batch(run.model, split, indices, 0, 0)
        loss = run.objective.loss(run.model, batch).per_example.mean()
        values[task] = loss + PENALTY * np.abs(table.data[run.model.tasks.id(task)]).mean()
    best = {record["task"]: record["best"] for record in lines(folder / "run")}
    assert values == pytest.approx(best, rel=1e-5)


def read_data(folder):  # noqa: F811
    return read_tasks(folder / "tasks", seed=0)


def test_the_search_draws_nothing_at_random(folder):  # noqa: F811
    for name in ("one", "two"):
        recipe(folder, "lorahub", training=QUICK).train(folder / name, progress=None)
    assert lines(folder / "one") == lines(folder / "two")
    same_adapters(folder / "one", folder / "two")


def test_ctrl_c_in_the_search_leaves_a_run_that_goes_on(folder, capsys):  # noqa: F811
    recipe(folder, "lorahub", training=QUICK).train(folder / "whole", progress=None)

    class Stop(Callback):
        def on_search(self, trainer, record):
            if record["search"]["task"] == TASKS[1] and record["search"]["evaluation"] == 3:
                raise_signal(SIGINT)

    stop = recipe(folder, "lorahub", training=QUICK)
    with pytest.raises(TrainingInterrupted) as info:
        stop.train(folder / "stopped", progress=None, callbacks=[Stop()])
    assert not (folder / "stopped" / "summary.json").exists()
    saved = read_safetensors(info.value.checkpoint / "adapter" / "adapter_model.safetensors")
    assert not next(value for name, value in saved.items() if "coefficients" in name).any()
    main(["train", "--resume", "--output", str(folder / "stopped")])
    assert "search: animal 1/12" in capsys.readouterr().err
    assert lines(folder / "stopped") == lines(folder / "whole")
    same_adapters(folder / "whole", folder / "stopped")


def test_a_search_that_fails_leaves_the_rows_as_they_were(tmp_path):
    trainer = make_trainer_with(tmp_path)
    (table,) = searched_tables(trainer.model.adapter)
    table.data[...] = 0.25

    def told(record):
        if record["evaluation"] == 2:
            raise RuntimeError("told")
        return False

    with pytest.raises(RuntimeError, match="told"):
        search(trainer.model, trainer.objective, trainer.train_split, TrainingConfig(), told)
    assert (table.data == 0.25).all()


def make_trainer_with(tmp_path, **fields):
    model = make_model(tmp_path / "base", "lorahub", n_skills=2, **fields)
    return make_trainer(tmp_path, "match", model=model)


def test_weights_by_layer_are_searched_too(tmp_path):
    trainer = make_trainer_with(tmp_path, router_granularity="linear")
    tables = searched_tables(trainer.model.adapter)
    assert len(tables) == len(trainer.model.adapter.layers) > 1
    met = []
    config = TrainingConfig(search_steps=3)
    assert search(trainer.model, trainer.objective, trainer.train_split, config, lambda r: met.append(r))
    assert len(met) == 3 * len(TASKS)


def test_the_examples_are_a_choice_of_the_seed(tmp_path):
    split = make_trainer_with(tmp_path).train_split
    chosen = [choose(split, "colour", 5, seed) for seed in (0, 0, 1)]
    assert chosen[0].tolist() == chosen[1].tolist() != chosen[2].tolist()
    assert {split.examples[i].task for i in chosen[0]} == {"colour"} and len(set(chosen[0].tolist())) == 5


def test_scipy_is_missed_before_anything_is_trained(folder, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match=r"search: expected SciPy 1.14 or later \(pip install"):
        recipe(folder, "lorahub").train(folder / "run", progress=None)
    assert not (folder / "run").exists()


def test_a_found_mixture_is_exported_as_one_lora(folder):  # noqa: F811
    recipe(folder, "lorahub", training=QUICK).train(folder / "run", progress=None)
    exported = export_task(load_run(folder / "run"), TASKS[0], "peft", folder / "exported")
    assert exported.exact and exported.error < 1e-5
