"""Few-shot adaptation of a run: the old tasks' bits, what is learnt, going on after Ctrl-C, wrong input."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from test_cli import call
from training_base import (
    labelled,
    make_trainer,
    numbers,
    press_ctrl_c,
    texts,
    write_tasks,
)

from polymoe.data import read_tasks
from polymoe.training import Callback, FewShot, TrainingConfig, TrainingInterrupted, adapt_run, load_run
from polymoe.training.objectives.embedding import embed

QUICK = TrainingConfig(max_steps=16, batch_size=8, eval_steps=8)
LABELS = ["cat", "red"]


@pytest.fixture(scope="module")
def new(tmp_path_factory):
    """A folder with a task that the runs do not know."""
    task = {"train": labelled(60, LABELS, 7), "test": labelled(20, LABELS, 8)}
    return write_tasks(tmp_path_factory.mktemp("new"), {"word": task})


@pytest.fixture(scope="module")
def runs(tmp_path_factory, base, data):
    """Finished runs by method."""
    folder = tmp_path_factory.mktemp("runs")
    for method in ("poly", "private", "lora"):
        flags = ("--epochs", "1", "--r", "2", "--output", folder / method)
        assert call("train", "--base", base, "--data", data, "--method", method, *flags) == 0
    return folder


def logits(run, data, tasks):
    """Of every test text over the labels of its own task, in bits."""
    split = run.objective.encode(run.model, read_tasks(data, tasks), "test")
    return run.objective._logits(embed(run.model, split.tokens, split.task_ids))


def test_old_tasks_keep_every_bit_when_only_the_row_is_trained(runs, data, new, tmp_path, capsys):
    out = tmp_path / "out"
    flags = ("--shots", "16", "--max-steps", "16", "--batch-size", "4", "--seed", "5", "--json")
    assert call("adapt", runs / "poly", "--task", "word", "--data", new, "--output", out, *flags) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary == json.loads((out / "summary.json").read_text())
    assert set(summary["evaluation"]["tasks"]) == {"word"}
    assert set(summary["adaptation"]["nearest_tasks"]) == {"animal", "colour"}
    assert (summary["adaptation"]["shots"], summary["adaptation"]["n_valid"]) == (16, 6)
    evaluations = []
    for run, tasks in ((runs / "poly", ()), (out, ("--tasks", "animal", "colour")), (out, ())):
        assert call("evaluate", run, *tasks, "--json") == 0
        evaluations.append(json.loads(capsys.readouterr().out)["tasks"])
    assert evaluations[0] == evaluations[1]
    assert evaluations[2] == {**evaluations[0], **summary["evaluation"]["tasks"]}
    before, after = load_run(runs / "poly"), load_run(out)
    assert after.model.tasks.names == ("animal", "colour", "word")
    np.testing.assert_array_equal(
        logits(after, data, ["animal", "colour"])[:, :4], logits(before, data, ["animal", "colour"])
    )
    old = dict(before.model.adapter_parameters())
    for name, p in after.model.adapter_parameters():
        np.testing.assert_array_equal(p.data[: len(old[name].data)], old[name].data)


def test_the_run_itself_stays_as_it_is(runs, new, tmp_path):
    def files():
        return {p: p.read_bytes() for p in (runs / "poly").rglob("*") if p.is_file()}

    before = files()
    adapt_run(runs / "poly", "word", new, "all", 8, training=QUICK, output=tmp_path / "out", progress=None)
    assert files() == before


@pytest.mark.parametrize(
    ("method", "tune"),
    [("poly", "router"), ("poly", "all"), ("poly", "mu"), ("poly", "head"), ("private", "router"),
     ("lora", "all"), ("lora", "head")],
)  # fmt: skip
def test_each_way_learns_the_new_task(runs, new, tmp_path, method, tune):
    training = replace(QUICK, max_steps=40, eval_steps=20, head_learning_rate=0.2)
    out = tmp_path / "out"
    losses = Losses()
    summary = adapt_run(
        runs / method,
        "word",
        new,
        tune,
        32,
        training=training,
        output=out,
        callbacks=(losses,),
        progress=None,
    )
    assert np.mean(losses.losses[-5:]) < 0.8 * losses.losses[0]
    run = load_run(out)
    assert run.evaluate()["tasks"]["word"] == summary["evaluation"]["tasks"]["word"]
    assert run.predict(["the big cat"], "word")[0].output in LABELS
    assert run.predict(["the red cat"], "colour")[0].output in ("red", "blue")
    heads = 2 * 24 + 2
    if tune == "head":
        assert summary["trainable_parameters"] == heads
    if (method, tune) == ("poly", "router"):
        assert summary["trainable_parameters"] == heads + 12 * 4  # layers x skills


class Losses(Callback):
    """Remembers the losses."""

    def __init__(self):
        self.losses = []

    def on_step_end(self, trainer, record):
        self.losses.append(record["loss"])


def run_of(tmp_path, objective, data):
    """A finished run of another objective."""
    make_trainer(tmp_path, objective, data, max_steps=4).train()
    return tmp_path / "run"


def test_match_learns_a_row_and_keeps_its_scale(tmp_path):
    run = run_of(tmp_path, "match", texts())
    new = {"word": {"train": labelled(30, LABELS, 7), "test": labelled(9, LABELS, 8)}}
    summary = adapt_run(
        run, "word", new, "router", 16, training=QUICK, output=tmp_path / "out", progress=None
    )
    assert summary["evaluation_before"]["tasks"]["word"]["n"] == 9
    assert summary["trainable_parameters"] == 4 * 2  # query and value of two layers, two skills
    before, after = load_run(run), load_run(tmp_path / "out")
    assert after.objective.log_scale.data.tobytes() == before.objective.log_scale.data.tobytes()
    assert after.objective.labels["word"] == tuple(sorted(LABELS))
    assert after.objective.labels["animal"] == before.objective.labels["animal"]
    with pytest.raises(ValueError, match=r"tune: expected 'router', 'all' or 'mu' \(match has no head\)"):
        adapt_run(run, "word", new, "head", 16, output=tmp_path / "head", progress=None)
    with pytest.raises(ValueError, match="data: expected a folder or tasks"):
        after.evaluate()  # the data were no files, so the run cannot say where they are


def test_regress_keeps_the_scales_of_old_tasks(tmp_path):
    run = run_of(tmp_path, "regress", numbers())
    rows = [(text, 3.0 * len(text.split())) for text, _ in labelled(40, LABELS, 7)]
    new = {"length": {"train": rows[:30], "test": rows[30:]}}
    adapt_run(run, "length", new, "router", 16, training=QUICK, output=tmp_path / "out", progress=None)
    before, after = load_run(run), load_run(tmp_path / "out")
    for task in ("animal", "colour"):
        old, again = before.predict(["the cat sees"], task), after.predict(["the cat sees"], task)
        assert again == old
    assert after.objective.scales["animal"] == before.objective.scales["animal"]
    assert after.objective.scales["length"][0] > 3


def test_a_stopped_adaptation_goes_on_with_the_same_bits(runs, new, tmp_path, capsys):
    def settings(name):
        return FewShot(runs / "poly", "word", new, "all", 16, training=QUICK), tmp_path / name

    whole, path = settings("whole")
    whole.train(path, progress=None)
    part, path = settings("part")
    trainer = part.trainer(path, progress=None)
    press_ctrl_c(trainer, 5)
    with pytest.raises(TrainingInterrupted):
        trainer.train()
    assert call("adapt", "--resume", "--output", path, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (
        summary["adaptation"] == json.loads((tmp_path / "whole" / "summary.json").read_text())["adaptation"]
    )
    for name in ("adapter_model.safetensors", "heads.safetensors"):
        again, expected = (tmp_path / run / "adapter" / name for run in ("part", "whole"))
        assert again.read_bytes() == expected.read_bytes()


def test_ctrl_c_says_how_to_go_on(runs, new, tmp_path, capsys, monkeypatch):
    def stop(trainer, *args, **kwargs):
        raise TrainingInterrupted(Path(trainer.folder.checkpoints / "step-1"), 1)

    monkeypatch.setattr("polymoe.training.trainer.Trainer.train", stop)
    assert call("adapt", runs / "poly", "--task", "word", "--data", new, "--output", tmp_path / "o") == 130
    assert f"polymoe adapt --resume --output {tmp_path / 'o'}" in capsys.readouterr().err


def test_an_adapted_run_can_be_adapted(runs, new, tmp_path, capsys):
    more = {"beast": {"train": labelled(20, ["dog", "blue"], 9), "test": labelled(8, ["dog", "blue"], 10)}}
    folder = write_tasks(tmp_path, more)
    adapt_run(runs / "poly", "word", new, shots=8, training=QUICK, output=tmp_path / "one", progress=None)
    adapt_run(
        tmp_path / "one", "beast", folder, shots=8, training=QUICK, output=tmp_path / "two", progress=None
    )
    one, two = (load_run(tmp_path / name).evaluate()["tasks"] for name in ("one", "two"))
    assert list(two) == ["animal", "colour", "word", "beast"]
    assert {name: two[name] for name in one} == one
    recipe = yaml.safe_load((tmp_path / "two" / "recipe.yaml").read_text())
    assert (recipe["data"]["word"], recipe["data"]["beast"]) == (new, folder)


def test_validation_of_old_tasks_stays_theirs(runs, data, new, tmp_path):
    training = replace(QUICK, seed=3)
    adapt_run(runs / "poly", "word", new, training=training, output=tmp_path / "out", progress=None)
    before, after = load_run(runs / "poly"), load_run(tmp_path / "out")
    old = before.evaluate(split="valid")["tasks"]
    assert {name: after.evaluate(split="valid")["tasks"][name] for name in old} == old


def test_all_shots_and_the_default_folder(base, data, new, tmp_path, capsys):
    run = tmp_path / "run"
    assert call("train", "--base", base, "--data", data, "--epochs", "1", "--output", run) == 0
    assert call("adapt", run, "--task", "word", "--data", new, "--shots", "all", "--max-steps", "4") == 0
    printed = capsys.readouterr().out
    assert f"polymoe predict {run}/adapted/word --task word" in printed
    assert "routed most like: " in printed
    adaptation = json.loads((run / "adapted" / "word" / "summary.json").read_text())["adaptation"]
    assert (adaptation["shots"], adaptation["n_valid"]) == (54, 6)


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (["RUN", "--data", "NEW"], 1, "task: expected the name of the new task, got None"),
        (["--task", "word", "--data", "NEW"], 1, "run: expected the folder of a run, got None"),
        (["nothing", "--task", "word"], 1, "run: expected a folder with a run, got nothing"),
        (["RUN", "--task", "word", "--data", "NEW", "--shots", "55"], 1,
         "shots: expected 1 to 54 (the training examples of word), got 55"),
        (["RUN", "--task", "word", "--data", "NEW", "--shots", "0"], 1, "got 0"),
        (["RUN", "--task", "word", "--data", "NEW", "--shots", "few"], 2, "shots"),
        (["RUN", "--task", "animal"], 1, "task: expected a name besides ['animal', 'colour'], got 'animal'"),
        (["RUN", "--task", "shape", "--data", "NEW"], 1, "task: expected one of ['word'], got 'shape'"),
        (["RUN", "--task", "word"], 1, "task: expected one of ['animal', 'colour'], got 'word'"),
        (["RUN", "--task", "word", "--data", "NEW", "--tune", "rows"], 2, "tune"),
        (["LORA", "--task", "word", "--data", "NEW"], 1, "does not go by task"),
        (["PRIVATE", "--task", "word", "--data", "NEW", "--tune", "mu"], 1, "tasks share no skills"),
        (["RUN", "--task", "word", "--data", "NEW", "--output", "RUN"], 1, "expected another folder"),
        (["RUN", "--task", "a/b", "--data", "NEW"], 1, "the task 'a/b' cannot name one"),
        (["RUN", "--task", "word", "--data", "NEW", "--max-length", "7"], 1, "max_length: expected that of"),
        (["--resume"], 1, "output: expected the folder of the run to go on with, got None"),
        (["--resume", "--output", "RUN"], 1, "expected a run that polymoe adapt has made"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line_and_leaves_nothing(
    argv, status, message, runs, new, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    names = {"RUN": runs / "poly", "LORA": runs / "lora", "PRIVATE": runs / "private", "NEW": new}
    assert call("adapt", *[names.get(a, a) for a in argv]) == status
    err = capsys.readouterr().err
    assert message in " ".join(err.split())
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())
    assert not (runs / "poly" / "adapted").exists()
