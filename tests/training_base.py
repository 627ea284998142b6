"""A tiny random base, small tasks in its words, and a trainer over them, for the training tests."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
from tiny_bert import write_bert

from polymoe.adapters import adapt
from polymoe.data import read_tasks
from polymoe.models import load_base
from polymoe.training import Callback, Trainer, TrainingConfig

WORDS = ["the", "a", "sees", "sleeps", "small", "big", "house", "walk"]
TASKS = ["animal", "colour"]


def labelled(n: int, choices: list[str], seed: int) -> list[tuple[str, str]]:
    """n texts of 3 to 9 words, one of which is the label."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        words = [WORDS[i] for i in rng.integers(len(WORDS), size=rng.integers(2, 9))]
        label = choices[rng.integers(len(choices))]
        words.insert(int(rng.integers(len(words) + 1)), label)
        rows.append((" ".join(words), label))
    return rows


def classes() -> dict[str, Any]:
    """Two tasks with labels: which animal, which colour."""
    return {
        "animal": {"train": labelled(40, ["cat", "dog"], 1), "test": labelled(12, ["cat", "dog"], 2)},
        "colour": {"train": labelled(24, ["red", "blue"], 3), "test": labelled(12, ["red", "blue"], 4)},
    }


def texts() -> dict[str, Any]:
    """Two tasks with free text: a shuffled copy of the input, the input backwards."""

    def copies(n: int, seed: int) -> list[tuple[str, str]]:
        rng = np.random.default_rng(seed)
        rows = [text for text, _ in labelled(n, ["cat", "dog", "red", "blue"], seed)]
        return [(text, " ".join(rng.permutation(text.split()))) for text in rows]

    return {name: {"train": copies(30, i), "test": copies(10, i + 9)} for i, name in enumerate(TASKS)}


def numbers() -> dict[str, Any]:
    """Two tasks with a number: words in the text, and minus ten times that."""

    def counts(n: int, seed: int, factor: float) -> list[tuple[str, float]]:
        return [(text, factor * len(text.split())) for text, _ in labelled(n, ["cat", "dog"], seed)]

    return {
        "animal": {"train": counts(40, 1, 1.0), "test": counts(12, 2, 1.0)},
        "colour": {"train": counts(30, 3, -10.0), "test": counts(12, 4, -10.0)},
    }


def write_tasks(folder: Path, tasks: dict[str, Any]) -> str:
    """The tasks as files of a folder; returns it."""
    for task, splits in tasks.items():
        for split, rows in splits.items():
            lines = [json.dumps({"input": x, "output": y}) for x, y in rows]
            (folder / f"{task}.{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(folder)


def base_folder(folder: Path) -> Path:
    """The tiny base as a folder, written once."""
    if not (folder / "config.json").exists():
        write_bert(folder, pooling="mean_tokens", normalize=True)
    return folder


def make_model(folder: Path, method: str = "poly", **overrides: Any) -> Any:
    """An adapted tiny base that knows both tasks."""
    base = load_base(base_folder(folder))
    settings = {"r": 2} | ({"n_skills": 2} if method in ("poly", "mhr") else {}) | overrides
    return adapt(base, method=method, tasks=TASKS, **settings)


def make_trainer(
    tmp: Path,
    objective: Any = "classify",
    data: Any = None,
    *,
    output: str = "run",
    method: str = "poly",
    callbacks: tuple[Callback, ...] = (),
    model: Any = None,
    **config: Any,
) -> Trainer:
    """A quiet trainer with small batches, on the tiny base in ``tmp/base``."""
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 8, "batch_tokens": 64} | config
    return Trainer(
        make_model(tmp / "base", method) if model is None else model,
        read_tasks(classes() if data is None else data),
        objective,
        TrainingConfig(**settings),
        tmp / output,
        callbacks=callbacks,
        progress=None,
    )


class Records(Callback):
    """Remembers the record of every step, without its times."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def on_step_end(self, trainer: Trainer, record: Any) -> None:
        self.records.append({name: value for name, value in record.items() if name != "seconds"})


def press_ctrl_c(trainer: Trainer, micro_step: int) -> None:
    """Ctrl-C while batch number ``micro_step`` runs."""
    batch = trainer.objective.batch

    def interrupted(model: Any, split: Any, indices: Any, seed: int, step: int) -> Any:
        if step == micro_step:
            signal.raise_signal(signal.SIGINT)
        return batch(model, split, indices, seed, step)

    trainer.objective.batch = interrupted  # type: ignore[method-assign]
