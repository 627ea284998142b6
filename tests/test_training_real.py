"""The whole path on the real MiniLM and the tasks that come with the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from real import minilm_folder

from polymoe.adapters import adapt
from polymoe.data import TaskData, read_tasks
from polymoe.models import load_base
from polymoe.training import Trainer, TrainingConfig, load_run


def few(task: TaskData) -> TaskData:
    """A handful of each split."""
    return TaskData(task.name, task.train[:24], task.valid[:4], task.test[:8])


def test_minilm_trains_on_the_demo_tasks(tmp_path: Path) -> None:
    folder = minilm_folder()
    tasks = read_tasks(Path(str(files("polymoe") / "demo/tasks")), ["sentiment", "topic"])
    model = adapt(load_base(folder), "mhr", tasks=list(tasks), n_splits=2, noise="off")
    before = [np.array(p.data) for _, p in model.adapter_parameters()]
    small = {name: few(task) for name, task in tasks.items()}
    config = TrainingConfig(epochs=4, batch_size=16, warmup_ratio=0.0, learning_rate=5e-3)
    losses: list[float] = []
    trainer = Trainer(model, small, "match", config, tmp_path / "run", progress=None)
    update = trainer._update

    def spy() -> dict[str, Any]:
        record = update()
        losses.append(record["loss"])
        return record

    trainer._update = spy  # type: ignore[method-assign]
    summary = trainer.train()
    assert summary["steps"] == len(losses) == 12
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
    assert not any(
        np.array_equal(p.data, b) for (_, p), b in zip(model.adapter_parameters(), before, strict=True)
    )
    assert summary["evaluation_before"]["mean"]["accuracy"] > 0.5  # zero-shot: far above one of five
    run = load_run(tmp_path / "run")
    assert run.evaluate(small) == summary["evaluation"]
    assert run.predict(["The team won the cup after extra time."], "topic")[0].output == "sports news"
