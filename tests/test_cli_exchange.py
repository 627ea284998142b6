"""The verbs that take adapters elsewhere, on a run over a tiny base."""

import json
from pathlib import Path

import pytest
from test_cli import call, training


@pytest.fixture(scope="module")
def run(tmp_path_factory, base, data):
    """A finished run with heads."""
    output = str(tmp_path_factory.mktemp("runs") / "run")
    flags = (
        "--method poly --objective classify --epochs 4 --batch-size 4 --learning-rate 0.02 --eval-steps 1000"
    )
    assert call(*training(base, data, output, flags)) == 0
    return output


def test_export_convert_and_merge(base, run, data, tmp_path, capsys):
    flags = ["--texts", words(tmp_path), "--json"]
    assert call("export", run, "--all-tasks", "--output", tmp_path / "out", *flags) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(r["task"], r["exact"], r["n_texts"]) for r in found] == [
        ("animal", True, 3),
        ("colour", True, 3),
    ]
    assert all(r["error"] < 1e-5 < 1e-3 < r["moves"] for r in found)
    one, two = tmp_path / "out/animal", tmp_path / "out/colour"
    assert call("convert", one, tmp_path / "mlx", "--to", "mlx") == 0
    assert call("merge", tmp_path / "mlx", two, "--weights", "1", "-0.5", "--output", tmp_path / "sum") == 0
    assert "the update differs from the weighted sum by" in capsys.readouterr().out
    assert call("export", tmp_path / "sum", "--to", "merged", "--output", tmp_path / "base") == 0
    assert call("evaluate", run, "--base", tmp_path / "base") == 1  # those are other weights
    assert "fingerprint" in capsys.readouterr().err


def test_export_by_default_goes_into_the_run_and_tells_of_heads(run, tmp_path, capsys):
    assert call("export", run, "--task", "animal", "--texts", words(tmp_path)) == 0
    out = capsys.readouterr().out
    assert "What the objective learnt (heads, scales) is no part of this" in out
    assert (Path(run) / "export/peft/animal/adapter_config.json").is_file()


def test_export_of_a_mean_route(base, data, tmp_path, capsys):
    flags = "--method smear --epochs 2 --eval-steps 1000"
    assert call(*training(base, data, tmp_path / "run", flags)) == 0
    assert call("export", tmp_path / "run", "--task", "animal") == 1
    assert "mean_route" in capsys.readouterr().err
    flags = ["--task", "animal", "--mean-route", data, "--texts", data]
    assert call("export", tmp_path / "run", *flags) == 0
    assert "Mean routes: not exact" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--task", "animals"], "task: expected one of ['animal', 'colour'], got 'animals'"),
        ([], "task: expected one of ['animal', 'colour'], got None"),
        (["--task", "animal", "--all-tasks"], "task: expected none with --all-tasks, got 'animal'"),
        (["--task", "animal", "--to", "onnx"], "to: expected one of peft, mlx, gguf, merged, got 'onnx'"),
    ],
)
def test_export_refuses_in_a_line(run, tmp_path, capsys, flags, message):
    assert call("export", run, *flags, "--output", tmp_path / "out") == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def words(folder):
    (folder / "texts.txt").write_text("the cat sees\n\na small dog\nred house\n")
    return folder / "texts.txt"
