"""The command line on a tiny base: every verb, what it prints, what it refuses, Ctrl-C and going on."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from training_base import texts, write_tasks

from polymoe import cli
from polymoe.training import load_run


def call(*argv):
    """Run a verb; the exit status."""
    try:
        cli.main([str(a) for a in argv])
    except SystemExit as stop:
        return stop.code
    return 0


def training(base, data, output, flags):
    """The verb train with the words of ``flags``."""
    return ["train", "--base", str(base), "--data", str(data), *flags.split(), "--output", str(output)]


def test_train_leaves_the_run_folder_and_prints_the_summary(base, data, tmp_path, capsys):
    out = tmp_path / "run"
    flags = "--method mhr --n-splits 2 --objective classify --epochs 2 --seed 3 --json"
    assert call(*training(base, data, out, flags)) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary == json.loads((out / "summary.json").read_text())
    for key in ("train_seconds", "steps", "real_tokens", "tokens_per_second", "peak_rss_bytes"):
        assert summary[key] > 0
    assert set(summary["evaluation"]["tasks"]) == {"animal", "colour"}
    assert {"accuracy", "macro_f1", "exact_match"} <= set(summary["evaluation"]["mean"])
    recipe = yaml.safe_load((out / "recipe.yaml").read_text())
    assert recipe["adapter"]["n_splits"] == 2
    assert recipe["training"]["seed"] == 3
    assert {p.name for p in (out / "adapter").iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_evaluate_says_what_training_said(run, capsys):
    assert call("evaluate", run, "--json") == 0
    evaluation = json.loads(capsys.readouterr().out)
    assert evaluation == json.loads(Path(run, "summary.json").read_text())["evaluation"]
    assert call("evaluate", run) == 0
    table = capsys.readouterr().out
    assert "animal" in table
    assert "mean" in table


def test_evaluate_takes_other_data_and_parts(run, data, capsys):
    assert call("evaluate", run, "--data", data, "--tasks", "colour", "--split", "valid", "--json") == 0
    assert list(json.loads(capsys.readouterr().out)["tasks"]) == ["colour"]


def test_predict_answers_line_by_line(run, capsys, monkeypatch):
    assert call("predict", run, "--task", "animal", "--input", "the cat sees", "a dog", "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["input"] for line in lines] == ["the cat sees", "a dog"]
    assert all(set(line["scores"]) == {"cat", "dog"} for line in lines)
    monkeypatch.setattr(sys, "stdin", ["the cat sees\n", "a dog\n"])
    assert call("predict", run, "--task", "animal") == 0
    assert capsys.readouterr().out.splitlines() == [line["output"] for line in lines]


def test_a_recipe_is_overridden_by_flags(run, base, data, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    settings = {
        "base": base,
        "data": data,
        "method": "lora",
        "adapter": {"r": 4},
        "training": {"epochs": 1, "seed": 1},
    }
    recipe.write_text(yaml.safe_dump(settings))
    assert call("train", recipe, "--r", "2", "--output", tmp_path / "out", "--json") == 0
    written = yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())
    assert (written["method"], written["adapter"]["r"], written["training"]["seed"]) == ("lora", 2, 1)


def test_patterns_are_flags_and_stay_in_the_recipe(base, data, tmp_path):
    out, pattern = tmp_path / "run", {r"layer\.0\..*": 3, "dense": 2}
    flags = r"--epochs 1 --method mosld --n-skills-pattern layer\.0\..* 3 dense 2"
    assert call(*training(base, data, out, flags)) == 0
    assert yaml.safe_load((out / "recipe.yaml").read_text())["adapter"]["n_skills_pattern"] == pattern
    layers = load_run(out).model.adapter.layers
    assert [layers[f"encoder.layer.{i}.attention.self.query"].experts.n_experts for i in (0, 1)] == [3, 5]


def test_info_tells_the_machine(capsys):
    assert call("info", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["isa"] in facts["isas"]
    assert facts["threads"] >= 1
    assert call("info") == 0
    assert "openmp" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (["trian"], 2, "got 'trian' (did you mean train?)"),
        (["train"], 1, "data: expected a folder or file with tasks, got None"),
        (["train", "--data", "nowhere"], 1, "nowhere"),
        (["train", "missing.yaml"], 1, "missing.yaml"),
        (["train", "--data", "DATA", "--base", "BASE", "--tasks", "plant"], 1, "'colour'], got 'plant'"),
        (["train", "--data", "DATA", "--base", "BASE", "--method", "polly"], 1, "did you mean poly or"),
        (["train", "--data", "DATA", "--base", "BASE", "--r", "0"], 1, "r: expected at least 1, got 0"),
        (["train", "--data", "DATA", "--base", "BASE", "--output", "RUN"], 1, "--resume goes on with it"),
        (["train", "--resume", "--output", "nothing"], 1, "nothing"),
        (["evaluate", "nothing"], 1, "run: expected a folder with a run, got nothing"),
        (["evaluate", "RUN", "--split", "dev2"], 1, "split: expected train, valid or test, got 'dev2'"),
        (["predict", "RUN", "--task", "anmal", "--input", "x"], 1, "got 'anmal'"),
        (["predict", "RUN"], 2, "task"),
        (["train", "--epochs", "many"], 2, "epochs"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line_and_a_status(
    argv, status, message, run, base, data, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    names = {"RUN": run, "BASE": base, "DATA": data}
    assert call(*[names.get(a, a) for a in argv]) == status
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())  # nothing half-written


def test_help_of_every_verb_names_its_flags(capsys):
    assert call("--help") == 0
    overview = capsys.readouterr().out
    for verb in cli.VERBS:
        assert verb in overview
        assert call(verb, "--help") == 0
        assert "--json" in capsys.readouterr().out


def test_match_on_free_text_trains_and_ranks_candidates(base, tmp_path, capsys):
    data = write_tasks(tmp_path, texts())
    out = tmp_path / "run"
    assert call(*training(base, data, out, "--objective match --epochs 1")) == 0
    capsys.readouterr()
    candidates = ["the cat sees", "a dog"]
    assert call("predict", out, "--task", "animal", "--input", "a dog", "--candidates", *candidates) == 0
    assert capsys.readouterr().out.strip() in candidates


def test_ctrl_c_saves_and_says_how_to_go_on(base, data, tmp_path):
    flags = "--method poly --epochs 6 --batch-size 2"
    assert call(*training(base, data, tmp_path / "whole", flags)) == 0
    command = [sys.executable, "-m", "polymoe", *training(base, data, tmp_path / "part", flags)]
    part = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "part" / "metrics.jsonl"
    deadline = time.monotonic() + 600
    while not (metrics.exists() and metrics.read_text().count("\n") > 3):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    part.send_signal(signal.SIGINT)
    _, err = part.communicate(timeout=600)
    assert part.returncode == 130
    assert f"polymoe train --resume --output {tmp_path / 'part'}" in err
    assert not (tmp_path / "part" / "summary.json").exists()
    assert call("train", "--resume", "--output", tmp_path / "part") == 0
    whole, again = (tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("whole", "part"))
    assert again.read_bytes() == whole.read_bytes()
