"""The table of a language model that learns: what is run, what is not run twice, and how it reads."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny_llama
from package_of_benchmarks import benchmark


@pytest.fixture(scope="module")
def language() -> ModuleType:
    """The module benchmarks.language."""
    pytest.importorskip("sklearn")
    pytest.importorskip("rouge_score")
    module: ModuleType = benchmark("language")
    return module


@pytest.fixture
def settings(language: ModuleType, tmp_path: Path) -> dict[str, Any]:
    """Options of tables that take a second."""
    data = tmp_path / "data"
    data.mkdir()
    for name in ("task1_cat_find", "task2_the_count", "task3_ct_tell"):
        instances = [{"input": f"the cat {i}", "output": [f"cat {i % 3}"]} for i in range(24)]
        content = {"Definition": ["Tell."], "Positive Examples": [], "Instances": instances}
        (data / f"{name}.json").write_text(json.dumps(content))
    return {
        "data": str(data),
        "output": str(tmp_path / "out"),
        "base": str(tiny_llama.write_llama(tmp_path / "base", max_position_embeddings=96)),
        "template": "instruction",
        "steps": 2,
        "valid_examples": 2,
        "eval_examples": 2,
        "max_new_tokens": 2,
    }


def test_runs_are_made_once(
    language: ModuleType,
    settings: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = language.Options(**settings, methods=("lora", "c-poly"))
    language.main(options)
    printed = capsys.readouterr().out
    tables = printed[printed.index("### ROUGE-L") :]
    assert "| task | before | lora | c-poly |" in tables and "| **mean** |" in tables
    assert [line.split(" | ")[0] for line in tables.splitlines()[4:7]] == ["| cat", "| the", "| ct"]
    monkeypatch.setattr(language, "Trainer", None)  # nothing is trained again
    language.main(options)
    assert capsys.readouterr().out.strip() == tables.strip()


def test_held_out_tasks_are_adapted_to(language: ModuleType, settings: dict[str, Any]) -> None:
    shots = benchmark("language_shots")
    rows = shots.adapt(shots.ShotOptions(**settings, held_out=("ct",), shots=4, shot_steps=2))
    ways = ["poly, no shots", "poly, router", "poly, all", "poly, mu", "lora on the base"]
    assert list(rows) == ["before", *ways]
    for way in ways:
        assert list(rows[way][0]["evaluation"]["tasks"]) == ["task3_ct_tell"]
    out = Path(settings["output"])
    source = json.loads((out / "poly-0-without-ct" / "summary.json").read_text())
    assert source["evaluated_split"] == "valid" and len(source["evaluation"]["tasks"]) == 2
    steps = {p.parent.name: json.loads(p.read_text())["steps"] for p in out.glob("*-ct*/summary.json")}
    assert steps.pop("poly-0-without-ct-no-shots-ct") == 0 and set(steps.values()) == {2}


def test_scores_have_means_over_tasks_and_deviations_over_seeds(language: ModuleType) -> None:
    def run(**values: float) -> dict[str, Any]:
        tasks = {f"task1_{n}_x": {"rougeL": v, "exact_match": 0.0} for n, v in values.items()}
        return {"evaluation": {"tasks": tasks}}

    rows = {"before": [run(a=0.1, b=0.3, c=0.9)], "poly": [run(a=0.5, b=0.6), run(a=0.7, b=0.6)]}
    assert language.scores(rows).splitlines()[2:7] == [
        "| task | before | poly |",
        "|---|---:|---:|",
        "| a | 10.0 | 60.0 ± 14.1 |",
        "| b | 30.0 | 60.0 ± 0.0 |",
        "| **mean** | **20.0** | **60.0 ± 7.1** |",
    ]
