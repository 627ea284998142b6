"""Adapters that start from trained ones: by name in a model, by folder in a recipe, by a first stage."""

import json
import signal

import numpy as np
import pytest
import yaml
from training_base import TASKS, base_folder, classes, make_model

from polymoe.adapters import AdaptedModel
from polymoe.cli import main
from polymoe.files import read_safetensors
from polymoe.models import load_base
from polymoe.recipe import Recipe
from polymoe.training import Callback, load_run

SMALL = {"epochs": 1, "batch_size": 8, "batch_tokens": 64}


@pytest.fixture
def folder(tmp_path):
    """A folder with tasks and one with the tiny base."""
    (tmp_path / "tasks").mkdir()
    for name, splits in classes().items():
        for split, rows in splits.items():
            lines = [json.dumps({"input": text, "output": label}) for text, label in rows]
            (tmp_path / "tasks" / f"{name}.{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    base_folder(tmp_path / "base")
    return tmp_path


def recipe(folder, method="mhr-z", **changes):
    settings = {"data": str(folder / "tasks"), "base": str(folder / "base"), "method": method}
    return Recipe.from_dict(settings | {"training": SMALL} | changes)


def test_init_from_stands_experts_side_by_side(tmp_path):
    model = AdaptedModel(load_base(base_folder(tmp_path / "base")))
    for seed, name in enumerate(("one", "two", "three")):
        model.add_adapter(name, "lora", seed=seed, r=3, lora_alpha=6, init_weights=False)
    model.add_adapter("all", "poly", TASKS, init_from=["one", "two", "three"])
    config = model.adapters["all"].config
    assert (config.n_skills, config.r, config.lora_alpha) == (3, 3, 6)
    for name, layer in model.adapters["all"].layers.items():
        for part in ("lora_A", "lora_B"):
            sources = [
                getattr(model.adapters[s].layers[name].experts, part).data for s in ("one", "two", "three")
            ]
            np.testing.assert_array_equal(getattr(layer.experts, part).data, np.concatenate(sources))
    with pytest.raises(KeyError, match="adapter_name: expected one of"):
        model.add_adapter("none", "poly", TASKS, init_from=["four"])
    model.add_adapter("other", "lora", r=4)
    with pytest.raises(ValueError, match="init_from: expected adapters of the same r, 3, got 4"):
        model.add_adapter("none", "poly", TASKS, init_from=["one", "other"])
    with pytest.raises(ValueError, match=r"init_from: .*lora_A: expected shape"):
        model.add_adapter("none", "poly", TASKS, init_from=["one", "two"], r=2)
    assert "none" not in model.adapters


def test_one_source_gives_its_router_too(tmp_path):
    model = make_model(tmp_path / "base", "mhr", n_splits=2)
    logits = [p for name, p in model.adapter_parameters() if name.endswith("logits")]
    for parameter in logits:
        parameter.data[...] = np.random.default_rng(0).normal(size=parameter.shape)
    model.add_adapter("second", "mhr-z", TASKS, init_from=["default"])
    second = dict(model.adapters["second"].parameters())
    for name, parameter in model.adapter_parameters():
        np.testing.assert_array_equal(second[name].data, parameter.data)
        assert second[name].trainable == name.endswith("logits")


def test_a_method_after_another_trains_both(folder, capsys):
    out = folder / "run"
    data = ["--data", str(folder / "tasks"), "--base", str(folder / "base"), "--output", str(out)]
    sizes = ["--r", "3", "--n-splits", "2", "--epochs", "2", "--batch-size", "8"]
    main(["train", "--method", "mhr-z", *sizes, *data])
    first, second = load_run(out / "first-stage"), load_run(out)
    assert (first.model.config.method, second.model.config.method) == ("mhr", "mhr-z")
    assert second.model.config.r == 3 and second.model.config.n_splits == 2
    before, after = (dict(run.model.adapter_parameters()) for run in (first, second))
    moved = {name.rpartition(".")[2] for name in before if (before[name].data != after[name].data).any()}
    assert moved == {"logits"}
    assert (
        json.loads((out / "summary.json").read_text())["trainable_parameters"]
        < json.loads((out / "first-stage" / "summary.json").read_text())["trainable_parameters"]
    )
    capsys.readouterr()
    main(["evaluate", str(out), "--json"])
    assert set(json.loads(capsys.readouterr().out)["tasks"]) == set(TASKS)


@pytest.mark.parametrize("stage", ["first", "second"])
def test_two_stages_go_on_where_they_stopped(folder, stage, capsys):
    whole, stopped = folder / "whole", folder / "stopped"
    recipe(folder).train(whole, progress=None)

    class Stop(Callback):
        def on_step_end(self, trainer, record):
            if record["step"] == 3 and (trainer.folder.path.name == "first-stage") == (stage == "first"):
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as info:
        recipe(folder).train(stopped, progress=None, callbacks=[Stop()])
    assert info.value.run == stopped
    main(["train", "--resume", "--output", str(stopped)])
    for part in ("adapter", "first-stage/adapter"):
        for name in ("adapter_model.safetensors", "heads.safetensors"):
            ours, theirs = (read_safetensors(run / part / name) for run in (stopped, whole))
            assert ours.keys() == theirs.keys()
            for key in ours:
                np.testing.assert_array_equal(ours[key], theirs[key])
    described = yaml.safe_load((stopped / "recipe.yaml").read_text())
    assert described["method"] == "mhr-z" and described["tasks"] == TASKS


def test_the_first_stage_can_be_said(folder):
    changes = {"adapter": {"noise": "off"}, "training": {"epochs": 2}}
    recipe(folder, first_stage=changes).train(folder / "run", progress=None)
    first = load_run(folder / "run" / "first-stage")
    assert first.model.config.noise == "off" and first.recipe["training"]["epochs"] == 2
    assert load_run(folder / "run").model.config.noise == "per_example"


def test_init_from_takes_the_place_of_the_first_stage(folder):
    recipe(folder, "mhr").train(folder / "first", progress=None)
    recipe(folder, init_from=[str(folder / "first")]).train(folder / "run", progress=None)
    assert not (folder / "run" / "first-stage").exists()
    assert load_run(folder / "run").model.config.method == "mhr-z"


def test_no_epochs_evaluate_what_is_there(folder):
    summary = recipe(folder, "poly", training=SMALL | {"epochs": 0}).train(folder / "run", progress=None)
    assert summary["steps"] == 0 and set(summary["evaluation"]["tasks"]) == set(TASKS)
    assert load_run(folder / "run").predict(["the cat"], "animal")


def test_wrong_stages_are_refused(folder):
    with pytest.raises(ValueError, match=r"init_from: expected runs or adapters \(mhr-z comes after mhr\)"):
        recipe(folder).trainer(folder / "run")
    with pytest.raises(ValueError, match=r"first_stage: expected None \(poly comes after no other\)"):
        recipe(folder, "poly", first_stage={"training": {}}).train(folder / "run")
    with pytest.raises(TypeError, match="first_stage: expected adapter and training, got 'method'"):
        recipe(folder, first_stage={"method": "poly"})
    with pytest.raises(FileNotFoundError):
        recipe(folder, init_from=[str(folder / "nowhere")]).train(folder / "run")
    assert not (folder / "run").exists()
