"""``polymoe inspect`` on runs and adapter folders, ours and as PEFT has them."""

import json
import shutil

import numpy as np
import pytest
from test_cli import call, training

from polymoe.adapters import adapt
from polymoe.models import load_base


@pytest.fixture(scope="module")
def by_token(tmp_path_factory, base, data):
    """A finished run whose router reads tokens."""
    output = str(tmp_path_factory.mktemp("runs") / "mola")
    assert call(*training(base, data, output, "--method mola --r 2 --n-skills 3 --epochs 1")) == 0
    return output


def show(capsys, *argv):
    """What ``inspect`` prints."""
    capsys.readouterr()
    assert call("inspect", *argv) == 0
    return capsys.readouterr().out


def test_a_run_is_shown(run, capsys):
    out = show(capsys, run)
    assert "poly on " in out
    assert "tasks: animal, colour" in out
    assert "encoder.layer.*.attention.self.query" in out
    assert "entropy" in out and "effective skills" in out and "discreteness" in out
    assert "weights, mean of 12 routers" in out
    assert "nearest tasks" in out
    assert "encoder.layer.1.output.dense: entropy" not in out
    assert "encoder.layer.1.output.dense: entropy" in show(capsys, run, "--layers")


def test_json_has_every_array(run, capsys):
    found = json.loads(show(capsys, run, "--json", "--text", "the cat", "--task", "animal"))
    weights = np.array([router["weights"] for router in found["routing"]["routers"]])
    assert weights.shape == (12, 2, 1, 4)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    assert np.shape(found["routing"]["similarity"]) == (2, 2)
    assert found["parameters"] == sum(row["router"] + row["experts"] for row in found["layers"].values())
    assert found["text"]["tokens"] == ["[CLS]", "the", "cat", "[SEP]"]
    assert len(found["text"]["routers"]) == 12


def test_an_adapter_folder_is_as_good_as_a_run(run, base, capsys):
    by_run, by_folder = (json.loads(show(capsys, path, "--json")) for path in (run, f"{run}/adapter"))
    assert by_run == by_folder


def test_a_folder_of_peft_needs_no_file_of_ours(run, base, tmp_path, capsys):
    shutil.copytree(f"{run}/adapter", tmp_path / "poly")
    for name in ("polymoe.json", "objective.json", "heads.safetensors"):
        (tmp_path / "poly" / name).unlink()
    ours = json.loads(show(capsys, run, "--json"))
    theirs = json.loads(show(capsys, tmp_path / "poly", "--base", base, "--json"))
    assert theirs["tasks"] == ["task_0", "task_1"]
    weights = [[router["weights"] for router in found["routing"]["routers"]] for found in (ours, theirs)]
    assert weights[0] == weights[1]


def test_a_router_of_tokens_reads_the_texts_of_the_run(by_token, capsys):
    out = show(capsys, by_token, "--text", "the red cat sleeps", "--task", "colour")
    assert "read: " in out and " tokens of 2 tasks" in out
    assert "text: the red cat sleeps (colour)" in out
    for token in ("[CLS]", "sleeps", "[SEP]"):
        assert token in out


def test_without_texts_it_says_what_is_missing(by_token, data, capsys):
    assert "name some with --data" in show(capsys, f"{by_token}/adapter")
    found = json.loads(show(capsys, f"{by_token}/adapter", "--data", data, "--split", "test", "--json"))
    assert all(
        sum(router["rows"]) == sum(found["routing"]["tokens"]) for router in found["routing"]["routers"]
    )


def test_many_skills_are_named_by_weight(tmp_path, base, data, capsys):
    flags = "--method poly --n-skills 14 --r 1 --epochs 1"
    assert call(*training(base, data, tmp_path / "run", flags)) == 0
    assert "most used of 14 skills" in show(capsys, tmp_path / "run")


def test_lora_has_no_routing_to_show(tmp_path, base, data, capsys):
    assert call(*training(base, data, tmp_path / "run", "--method lora --epochs 1")) == 0
    assert "one pair for everybody" in show(capsys, tmp_path / "run")


def test_wrong_paths_and_flags_are_one_line(run, tmp_path, capsys):
    cases = [
        ([tmp_path / "none"], "run: expected a folder with a run"),
        ([tmp_path], "expected a run or an adapter, got neither"),
        ([run, "--task", "animal"], "task: expected a text beside it"),
        ([run, "--text", "a cat"], "task_ids: expected one of ['animal', 'colour'] per example, got None"),
        ([run, "--text", "a cat", "--task", "plant"], "expected one of ['animal', 'colour'], got 'plant'"),
    ]
    for argv, message in cases:
        capsys.readouterr()
        assert call("inspect", *argv) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


@pytest.mark.filterwarnings("default::polymoe.training.RoutingWarning")
def test_a_warning_of_the_router_is_one_line(tmp_path, base, data, capsys):
    flags = ["--base", base, "--data", data, "--method", "poly", "--router-learning-rate", "1e-6"]
    capsys.readouterr()
    assert call("train", *flags, "--batch-size", "8", "--max-steps", "60", "--output", tmp_path / "run") == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "alike" in line]
    assert len(lines) == 1
    assert lines[0].startswith("polymoe train: warning: step ")
    assert lines[0].endswith("or a method without routing (lora).")


def test_without_its_base_an_adapter_is_looked_at_all_the_same(run, base, tmp_path, capsys):
    folder = tmp_path / "poly"
    shutil.copytree(f"{run}/adapter", folder)
    theirs = json.loads(show(capsys, folder, "--json"))
    for name in ("adapter_config.json", "polymoe.json"):
        (folder / name).write_text((folder / name).read_text().replace(base, "some/<b>where"))
    capsys.readouterr()
    assert call("inspect", folder, "--json", "--html", tmp_path / "a.html") == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    for side in (found, theirs):  # the order of the layers is that of the base, where there is one
        side["routers"] = {router["name"]: router for router in side.pop("routing")["routers"]}
    assert found == {**theirs, "base": "some/<b>where"}
    assert "the base is not here (there is no 'some/<b>where'; --base some/<b>where has it" in printed.err
    assert "some/<b>where" not in (tmp_path / "a.html").read_text()
    assert call("inspect", folder, "--text", "a cat", "--task", "animal") == 1
    assert "base: expected 'some/<b>where', which is not here, to run texts" in capsys.readouterr().err


def test_an_ia3_folder_of_peft_has_no_rank(base, tmp_path, capsys):
    adapt(load_base(base), "ia3").save_adapter(tmp_path / "ia3")
    (tmp_path / "ia3/polymoe.json").unlink()
    out = show(capsys, tmp_path / "ia3")
    assert "router constant, experts vector: mixing factors\n" in out
    assert "encoder.layer.*.output.dense" in out
