"""Runs in TensorBoard, Weights & Biases and MLflow, named as Hugging Face's ``report_to`` names them.

train/loss  train/grad_norm  train/lr/GROUP  train/tasks/TASK/loss    of every ``logging_steps``-th step
valid/METRIC  valid/tasks/TASK/METRIC  test/...                       of each evaluation
valid/routing/MEASURE                                                 means over the routers

A run that is resumed goes on in the same place: what TensorBoard has of later steps is purged, the others are
told the id of the run, which is kept in RUN/tracking/runs.json.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from polymoe.files import read_json, write_json
from polymoe.training.callbacks import Callback
from polymoe.training.metrics import Evaluation

if TYPE_CHECKING:
    from polymoe.training.trainer import Trainer


class Tracker(Callback):
    """Hands numbers to a service; a subclass says how. ``library`` is what it needs, ``install`` gets it.

    ImportError without the library, when it is made.
    """

    library: ClassVar[str]
    install: ClassVar[str]

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.is_open = False
        if find_spec(self.library) is None:
            raise ImportError(
                f"report_to: expected the library {self.library}, got none; run `{self.install}`",
                name=self.library,
            )

    def open(self, trainer: Trainer, run: str | None) -> str | None:
        """Begin, or go on with the ``run`` of that id; its id, None for a service that needs none."""
        raise NotImplementedError

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of a step, by name."""
        raise NotImplementedError

    def _send(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        if not self.is_open:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / "runs.json"
            runs: dict[str, str] = read_json(path) if path.is_file() else {}
            run = self.open(trainer, runs.get(self.library))
            self.is_open = True
            if run is not None:
                write_json(path, {**runs, self.library: run})
        self.log(values, trainer.step)

    def on_step_end(self, trainer: Trainer, record: Mapping[str, Any]) -> None:
        """Loss, rates and the rest of every ``logging_steps``-th step."""
        if record["step"] % trainer.config.logging_steps == 0:
            tasks = {task: {"loss": loss} for task, loss in record["tasks"].items()}
            self._send(trainer, dict(_flat("train", {**record, "tasks": tasks})))

    def on_evaluate(self, trainer: Trainer, split: str, evaluation: Evaluation) -> None:
        """Means over the tasks, and each task's own."""
        self._send(trainer, dict(_flat(split, {**evaluation["mean"], "tasks": evaluation["tasks"]})))

    def on_routing(self, trainer: Trainer, split: str, measures: Mapping[str, float]) -> None:
        """What the routers do, mean over them."""
        self._send(trainer, dict(_flat(split, {"routing": measures})))


class TensorBoard(Tracker):
    """Event files in RUN/tracking (``tensorboard --logdir RUN``)."""

    library, install = "tensorboardX", "pip install 'polymoe[tensorboard]'"

    def open(self, trainer: Trainer, run: str | None) -> None:
        """A further event file."""
        from tensorboardX import SummaryWriter

        purge = trainer.step + 1 if trainer.step else None
        # names go by the second alone, and a second file of that second would replace the first
        suffix = f".{trainer.step:09d}"
        self.writer = SummaryWriter(str(self.folder), purge_step=purge, filename_suffix=suffix)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """A scalar each."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write out what is left."""
        if self.is_open:
            self.writer.close()


class Wandb(Tracker):
    """A run of the project WANDB_PROJECT, "polymoe" by default, with files in RUN/tracking/wandb. Whatever
    wandb reads from the environment holds (WANDB_MODE=offline)."""

    library, install = "wandb", "pip install wandb"

    def open(self, trainer: Trainer, run: str | None) -> str:
        """The run, with the recipe as its configuration."""
        import wandb

        self.run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "polymoe"),
            name=os.environ.get("WANDB_NAME", trainer.folder.path.resolve().name),
            dir=str(self.folder),
            config=dict(trainer.recipe),
            id=run,
            resume="allow",
        )
        # steps of a run that went back to a checkpoint come again, which wandb's own count refuses
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")
        return str(self.run.id)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """All at once."""
        self.run.log({**values, "step": step})

    def close(self) -> None:
        """Send what is left."""
        if self.is_open:
            self.run.finish()


class MLflow(Tracker):
    """A run of the experiment MLFLOW_EXPERIMENT_NAME, "polymoe" by default, at MLFLOW_TRACKING_URI."""

    library, install = "mlflow", "pip install mlflow"

    def open(self, trainer: Trainer, run: str | None) -> str:
        """The run, with the recipe as its parameters."""
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self.client, self.status = MlflowClient(), "FAILED"
        if run is not None:
            self.run = run
            self.client.update_run(run, "RUNNING")
            return run
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "polymoe")
        experiment = self.client.get_experiment_by_name(name)
        place = self.client.create_experiment(name) if experiment is None else experiment.experiment_id
        started = self.client.create_run(place, run_name=trainer.folder.path.resolve().name)
        self.run = str(started.info.run_id)
        settings = [Param(_plain(name), str(value)[:500]) for name, value in _leaves(trainer.recipe)]
        for i in range(0, len(settings), 100):  # as many as it takes at once
            self.client.log_batch(self.run, params=settings[i : i + 100])
        return self.run

    def log(self, values: Mapping[str, float], step: int) -> None:
        """In one request, or a few."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        found = [Metric(_plain(name), float(value), now, step) for name, value in values.items()]
        for i in range(0, len(found), 1000):
            self.client.log_batch(self.run, metrics=found[i : i + 1000])

    def on_train_end(self, trainer: Trainer, summary: Mapping[str, Any]) -> None:
        """It went well."""
        if self.is_open:
            self.status = "FINISHED"

    def close(self) -> None:
        """Say how it ended."""
        if self.is_open:
            self.client.set_terminated(self.run, self.status)


TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": Wandb, "mlflow": MLflow}


def make_trackers(names: Sequence[str], folder: Path) -> list[Tracker]:
    """Those of ``report_to``; "all" stands for the ones whose library is there."""
    if "all" in names:
        names = [name for name, kind in TRACKERS.items() if find_spec(kind.library) is not None]
    return [TRACKERS[name](folder) for name in names]


def _flat(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Numbers in mappings of mappings, by their path; not the step, nor how many examples were read."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{prefix}/{name}", value)
        elif isinstance(value, int | float) and name not in ("step", "n"):
            yield f"{prefix}/{name}", value


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _plain(name: str) -> str:
    """A name without what MLflow refuses: other characters, and parts that are no name of a file."""
    parts = re.sub(r"[^\w\-. :/]", "_", name).split("/")
    return "/".join(part if part.strip(".") else "_" for part in parts)
