"""Runs in TensorBoard, wandb and MLflow: what was sent is read back by their own readers; a resumed run goes
on in its place."""

import json
import math
import time

import pytest
import tyro
import yaml
from training_base import make_trainer

from polymoe.cli.flags import CONFIG
from polymoe.recipe import Recipe
from polymoe.training import TrainingConfig, trackers


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def scalars(folder):
    """{name: [(step, value)]} of the event files in a run."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(folder / "tracking"), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]
    }


def expected_scalars(folder):
    """The same from metrics.jsonl."""
    found = {}
    for line in metrics(folder):
        step = line["step"]
        if "loss" in line:
            values = {f"train/{name}": line[name] for name in ("loss", "grad_norm", "tokens")}
            values |= {f"train/tasks/{task}/loss": value for task, value in line["tasks"].items()}
            values |= {f"train/lr/{group}": value for group, value in line["lr"].items()}
        elif "evaluation" in line:
            values = {f"{line['split']}/{name}": v for name, v in line["evaluation"]["mean"].items()}
            for task, own in line["evaluation"]["tasks"].items():
                values[f"{line['split']}/tasks/{task}/accuracy"] = own["accuracy"]
        else:
            mean = line["routing"]["mean"].items()
            values = {f"{line['split']}/routing/{name}": value for name, value in mean}
        for name, value in values.items():
            found.setdefault(name, []).append((step, value))
    return found


def assert_has(found, wanted):
    for name, points in wanted.items():
        assert [step for step, _ in found[name]] == [step for step, _ in points], name
        assert all(
            math.isclose(a, b, rel_tol=1e-6) for (_, a), (_, b) in zip(found[name], points, strict=True)
        ), name


def test_tensorboard_has_what_the_metrics_file_has(tmp_path):
    pytest.importorskip("tensorboardX")
    make_trainer(tmp_path, report_to="tensorboard", max_steps=6, eval_steps=3, logging_steps=2).train()
    wanted = expected_scalars(tmp_path / "run")
    assert {
        "train/loss",
        "train/tasks/animal/loss",
        "valid/accuracy",
        "test/tasks/colour/accuracy",
    } <= wanted.keys()
    assert "valid/routing/entropy" in wanted
    assert [step for step, _ in wanted["train/loss"]] == [2, 4, 6]
    assert_has(scalars(tmp_path / "run"), wanted)


def stop_and_resume(tmp_path, wait=0.0, **settings):
    """A run that goes down at step 5, after a checkpoint at step 4, and goes on."""

    class PowerCutError(Exception):
        pass

    class Cut(trackers.Callback):
        def on_step_end(self, trainer, record):
            if record["step"] == 5:
                raise PowerCutError

    settings = {"max_steps": 8, "eval_steps": 4, "save_steps": 2, **settings}
    with pytest.raises(PowerCutError):
        make_trainer(tmp_path, callbacks=(Cut(),), **settings).train()
    ids = tmp_path / "run/tracking/runs.json"
    before = json.loads(ids.read_text()) if ids.exists() else None
    time.sleep(wait)
    make_trainer(tmp_path, **settings).train(resume=True)
    return before


def test_a_resumed_run_has_every_step_once_in_tensorboard(tmp_path):
    pytest.importorskip("tensorboardX")
    stop_and_resume(tmp_path, report_to="tensorboard")
    found, wanted = scalars(tmp_path / "run"), expected_scalars(tmp_path / "run")
    assert [step for step, _ in found["train/loss"]] == list(range(1, 9))
    assert_has(found, wanted)


def test_an_overwritten_run_leaves_no_events(tmp_path):
    pytest.importorskip("tensorboardX")
    make_trainer(tmp_path, report_to=["tensorboard"], max_steps=3).train()
    make_trainer(tmp_path, report_to=["tensorboard"], max_steps=2).train(overwrite=True)
    assert [step for step, _ in scalars(tmp_path / "run")["train/loss"]] == [1, 2]


def test_a_resumed_run_is_one_run_in_mlflow(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    before = stop_and_resume(tmp_path, report_to="mlflow")
    client = mlflow.tracking.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("polymoe").experiment_id])
    assert (
        before == {"mlflow": run.info.run_id} == json.loads((tmp_path / "run/tracking/runs.json").read_text())
    )
    assert run.info.status == "FINISHED"
    assert run.data.params["training.max_steps"] == "8"
    history = {point.step: point.value for point in client.get_metric_history(run.info.run_id, "train/loss")}
    assert_has(
        {"train/loss": sorted(history.items())},
        {"train/loss": expected_scalars(tmp_path / "run")["train/loss"]},
    )


def test_a_resumed_run_keeps_its_id_in_wandb(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    before = stop_and_resume(tmp_path, 1.0, report_to="wandb")  # its folders are named by the second
    assert before == json.loads((tmp_path / "run/tracking/runs.json").read_text())
    written = list((tmp_path / "run/tracking/wandb").glob(f"offline-run-*-{before['wandb']}/*.wandb"))
    assert len(written) == 2
    assert all(path.stat().st_size > 1000 for path in written)


@pytest.mark.parametrize("names", ["none", None, (), ["none"]])
def test_nothing_is_sent_by_default(names):
    assert TrainingConfig().report_to == TrainingConfig(report_to=names).report_to == ()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            "tensorbord",
            r"report_to: expected some of \['tensorboard', 'wandb', 'mlflow', 'all', 'none'\], got 'ten",
        ),
        (["wandb", "comet"], "got 'comet'"),
        (["none", "wandb"], "report_to: expected 'none' alone"),
    ],
)
def test_unknown_services_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(report_to=names)


@pytest.mark.parametrize("name", trackers.TRACKERS)
def test_a_service_without_its_library_is_told_before_training(tmp_path, monkeypatch, name):
    monkeypatch.setattr(trackers, "find_spec", lambda library: None)
    with pytest.raises(
        ImportError, match=f"report_to: expected the library .*, got none; run `pip install .*{name}"
    ):
        make_trainer(tmp_path, report_to=name)
    assert make_trainer(tmp_path, report_to="all", max_steps=1).train()["steps"] == 1
    assert not (tmp_path / "run/tracking").exists()


def test_a_recipe_keeps_the_names(tmp_path):
    pytest.importorskip("tensorboardX")
    make_trainer(tmp_path, report_to="tensorboard", max_steps=1).train()
    saved = yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())["training"]
    assert saved["report_to"] == ["tensorboard"]
    assert TrainingConfig.from_dict(saved).report_to == ("tensorboard",)


@pytest.mark.parametrize("names", [["tensorboard"], ["tensorboard", "wandb"]])
def test_a_flag_names_services(names):
    parsed = tyro.cli(Recipe, args=["--report-to", *names], default=Recipe(), config=CONFIG)
    assert parsed.training.report_to == tuple(names)


def test_names_that_mlflow_refuses_become_plain():
    assert trackers._plain("valid/tasks/übung & <b>/f1") == "valid/tasks/übung _ _b_/f1"
    assert trackers._plain("valid/tasks/../../f1") == "valid/tasks/_/_/f1"
