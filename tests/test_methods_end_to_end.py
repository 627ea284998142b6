"""Every row of the table of methods, on real text, as a user runs it: `polymoe train`, Ctrl-C, `--resume`,
and the run in a fresh process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tokenizers
import yaml
from real import minilm_folder, real_tasks
from test_cli import call
from test_methods import NEEDED
from tiny_bert import write_bert

from polymoe.adapters import METHODS
from polymoe.training import Trainer

TASKS = ("intent", "sentiment", "topic")
TEXTS = [
    "Wake me at six, please.",
    "No",
    "The battery cover will not stay shut, and nobody answers the phone.",
]
STOP_AT = 5  # micro-steps of each stage


class Run(NamedTuple):
    """A finished run; ``predicted``: what the trainer's own model said of the texts at the end; ``still``:
    what was to be trained and never had a gradient."""

    method: str
    path: Path
    summary: dict[str, Any]
    predicted: list[dict[str, Any]]
    still: list[str]


@pytest.fixture(scope="module")
def given(tmp_path_factory: Any) -> list[str]:
    """Flags: some of the texts that come with the package, a tiny base whose tokenizer knows them."""
    folder, vocabulary = tmp_path_factory.mktemp("given"), 200
    few(Path(str(files("polymoe") / "demo/tasks")), folder / "data", TASKS, train=12, test=6)
    base = write_bert(folder / "base", pooling="mean_tokens", normalize=True, vocab_size=vocabulary)
    tokenizer = tokenizers.Tokenizer.from_file(str(base / "tokenizer.json"))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=vocabulary, special_tokens=special, show_progress=False
    )
    texts = [line for path in (folder / "data").iterdir() for line in path.read_text().splitlines()]
    tokenizer.train_from_iterator(sorted(texts), trainer)
    tokenizer.save(str(base / "tokenizer.json"))
    return [
        "--base",
        str(base),
        "--data",
        str(folder / "data"),
        "--epochs",
        "2",
        "--batch-size",
        "6",
        "--r",
        "2",
    ]


def few(source: Path, target: Path, tasks: tuple[str, ...], **sizes: int) -> None:
    """The first examples of each split."""
    target.mkdir()
    for task in tasks:
        for split, n in sizes.items():
            lines = (source / f"{task}.{split}.jsonl").read_text(encoding="utf-8").splitlines()[:n]
            (target / f"{task}.{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")


def train(method: str, given: list[str], output: Path) -> int:
    needed = [f for name, value in NEEDED[method].items() for f in ("--" + name.replace("_", "-"), *value)]
    return int(call("train", *given, "--method", method, *needed, "--output", output))


@pytest.fixture(scope="module", params=METHODS)
def run(request: Any, given: list[str], tmp_path_factory: Any) -> Run:
    path, predicted, still = tmp_path_factory.mktemp(request.param) / "run", [], []
    finish = Trainer._finish

    def finish_and_predict(trainer: Trainer) -> Any:
        summary = finish(trainer)
        predicted[:] = map(asdict, trainer.objective.predict(trainer.model, TEXTS, "topic"))
        moment = {
            s.name: trainer.parameters.view(trainer.optimizer.v, s) for s in trainer.parameters.segments
        }
        still[:] = [s.name for s in trainer.parameters.segments if s.trainable and not moment[s.name].any()]
        return summary

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_finish", finish_and_predict)
        assert train(request.param, given, path) == 0
    return Run(request.param, path, json.loads((path / "summary.json").read_text()), predicted, still)


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Any]:
    """``elsewhere(path)``: predictions and evaluation of a run in another process, one for all runs."""
    code = """
import json, sys, traceback
from dataclasses import asdict
from polymoe.training import load_run
for line in sys.stdin:
    try:
        path, texts = json.loads(line)
        run = load_run(path)
        predicted = [asdict(p) for p in run.predict(texts, run.recipe["tasks"][-1])]
        print(json.dumps([predicted, run.evaluate()]), flush=True)
    except Exception:
        print(json.dumps(traceback.format_exc()), flush=True)
"""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None and process.stdout is not None

        def ask(path: Path) -> Any:
            print(json.dumps([str(path), TEXTS]), file=process.stdin, flush=True)
            return json.loads(process.stdout.readline())

        yield ask
        process.stdin.close()


def test_every_method_trains(run: Run) -> None:
    trained = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert run.summary["steps"] == sum("loss" in line for line in trained)
    assert set(run.summary["evaluation"]["tasks"]) == set(TASKS)
    assert yaml.safe_load((run.path / "recipe.yaml").read_text())["method"] == run.method
    assert json.loads((run.path / "adapter" / "polymoe.json").read_text())["method"] == run.method
    assert run.still == [] or not run.summary["steps"]  # a second stage may have nothing to train
    assert call("evaluate", run.path) == 0


def test_every_method_gives_the_same_bits_in_a_fresh_process(run: Run, elsewhere: Any) -> None:
    assert len(run.predicted) == len(TEXTS)
    assert elsewhere(run.path) == [run.predicted, run.summary["evaluation"]]


def test_every_method_resumes_with_the_same_bits(
    run: Run, given: list[str], tmp_path: Path, monkeypatch: Any
) -> None:
    part, stopped, step = tmp_path / "run", set(), Trainer._run_batch

    def interrupted(trainer: Trainer, indices: Any) -> None:
        folder = trainer.folder.path.relative_to(part)
        if trainer.state.micro_step == STOP_AT and folder not in stopped:
            stopped.add(folder)
            signal.raise_signal(signal.SIGINT)
        step(trainer, indices)

    monkeypatch.setattr(Trainer, "_run_batch", interrupted)
    status = train(run.method, given, part)
    while status == 130:
        assert not (part / "summary.json").exists()
        status = call("train", "--resume", "--output", part)
    assert status == 0
    summaries = {path.parent.relative_to(run.path): path for path in run.path.rglob("summary.json")}
    learning = {
        folder for folder, path in summaries.items() if json.loads(path.read_text())["steps"] > STOP_AT
    }
    assert stopped == learning != set()
    for folder in summaries:
        whole, again = run.path / folder, part / folder
        for file in ("adapter_model.safetensors", "heads.safetensors", "objective.json", "polymoe.json"):
            assert (again / "adapter" / file).read_bytes() == (whole / "adapter" / file).read_bytes(), file
        assert told(again) == told(whole)


def told(run: Path) -> Any:
    """Every figure of a run but times and memory."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((run / "summary.json").read_text())
    keys = ("steps", "best_step", "examples", "real_tokens", "evaluation", "evaluation_before", "validation")
    return [{k: v for k, v in line.items() if "seconds" not in k} for line in lines], [
        summary[k] for k in keys
    ]


@pytest.mark.parametrize("method", ["c-poly", "mola"])
def test_a_method_trains_on_superglue_with_minilm(method: str, tmp_path: Path, elsewhere: Any) -> None:
    few(real_tasks("superglue"), tmp_path / "data", ("cb", "copa", "rte"), train=8, test=4)
    sizes = ["--epochs", "1", "--batch-size", "8", "--max-length", "32"]
    given = ["--base", str(minilm_folder()), "--data", str(tmp_path / "data"), *sizes]
    assert train(method, given, tmp_path / "run") == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] > 0
    assert elsewhere(tmp_path / "run")[1] == summary["evaluation"]
