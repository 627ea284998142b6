"""The second stage: a trained run learns one more task from a few examples."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from polymoe.adapters.extend import Tune
from polymoe.data import draw_shots
from polymoe.report import routing_statistics
from polymoe.training.config import TrainingConfig
from polymoe.training.folder import RunFolder
from polymoe.training.run import Run, load_run
from polymoe.training.summary import default_recipe
from polymoe.training.tasks import as_tasks
from polymoe.training.trainer import Trainer

DEFAULTS = TrainingConfig(max_steps=100, batch_size=8, eval_steps=20)
"""Settings of few-shot training: 100 steps of 8 examples; the rates are those of any run."""


@dataclass(frozen=True)
class FewShot:
    """Which run learns which task from what, and how."""

    run: str | os.PathLike[str]
    """Folder of the run that learns one more task; it stays as it is."""
    task: str
    """Name of the new task."""
    data: Any = None
    """Folder or file with the new task; the run's own data by default."""
    tune: Tune = "router"
    """What is trained beside the new task's head: its row of the router, all skills with it ("all"), all
    skills under a uniform router ("mu"), or nothing ("head").
    """
    shots: int | Literal["all"] = 32
    """Training examples, drawn by the seed so that every label has its share; or all."""
    n_valid: int | None = None
    """Validation examples at most; as many as shots by default."""
    training: TrainingConfig = field(default=DEFAULTS)

    def to_dict(self) -> dict[str, Any]:
        """As a recipe holds it; :meth:`from_dict` reads it back."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("data", "training")}
        data = {"data": _absolute(self.data)} if isinstance(self.data, str | os.PathLike) else {}
        return {**given, "run": _absolute(self.run), **data}

    @classmethod
    def from_recipe(cls, recipe: Mapping[str, Any]) -> FewShot:
        """What made a run, from its recipe; ValueError for a run that was made otherwise."""
        if not isinstance(settings := recipe.get("adapt"), Mapping):
            raise ValueError("output: expected a run that polymoe adapt has made, got another")
        return cls(**settings, training=TrainingConfig.from_dict(recipe["training"]))

    @property
    def output(self) -> Path:
        """Where the new run goes when nobody says: ``RUN/adapted/TASK``."""
        if Path(self.task).name != self.task:
            raise ValueError(f"output: expected a folder (the task {self.task!r} cannot name one), got None")
        return Path(self.run) / "adapted" / self.task

    def trainer(self, output: str | os.PathLike[str], base: Any = None, **options: Any) -> Trainer:
        """Load the run, add the task, draw the shots, and be ready to train into ``output``. ``options`` go
        to the trainer."""
        run = load_run(self.run, base)
        model, objective, data = run.model, run.objective, self.data
        if data is None and (data := run.data) is None:
            raise ValueError(f"data: expected a folder or file with {self.task!r}, got None")
        model.add_task(self.task, self.tune, seed=self.training.seed)
        task = as_tasks(data, [self.task], run.split_seed)[self.task]
        shots = len(task.train) if self.shots == "all" else self.shots
        n_valid = len(task.valid) if self.shots == "all" and self.n_valid is None else self.n_valid
        task = draw_shots(task, shots, n_valid, self.training.seed)
        if self.tune == "head" and not any(p.group == "heads" for _, p in objective.named_parameters()):
            raise ValueError(
                f"tune: expected 'router', 'all' or 'mu' ({objective.name} has no head), got 'head'"
            )
        objective.add_task(model, task, shared=self.tune in ("all", "mu"))
        if self.training.max_length not in (None, objective.max_length):
            raise ValueError(
                f"max_length: expected that of the run, {objective.max_length}, "
                f"got {self.training.max_length}"
            )
        as_before = run.recipe.get("training", {}).get("batch_invariant", False)
        invariant = self.training.batch_invariant or as_before
        training = replace(self.training, max_length=objective.max_length, batch_invariant=invariant)
        trainer = Trainer(model, {self.task: task}, objective, training, output, **options)
        named = base if isinstance(base, str | os.PathLike) else run.recipe["base"]
        trainer.recipe = {**self._recipe(run, trainer, data), "base": str(named)}
        return trainer

    def _recipe(self, run: Run, trainer: Trainer, data: Any) -> dict[str, Any]:
        """With the data of all tasks, as far as they are paths, so that the new run can be evaluated."""
        recipe = default_recipe(trainer, None)
        old = run.data
        places = dict(old) if isinstance(old, Mapping) else dict.fromkeys(run.objective.task_names[:-1], old)
        places[self.task] = data.get(self.task) if isinstance(data, Mapping) else data
        if all(isinstance(place, str | os.PathLike) for place in places.values()):
            recipe["data"] = {name: _absolute(place) for name, place in places.items()}
        recipe["tasks"] = list(trainer.objective.task_names)
        return {**recipe, "split_seed": run.split_seed, "adapt": self.to_dict()}

    def train(
        self,
        output: str | os.PathLike[str] | None = None,
        *,
        resume: bool = False,
        overwrite: bool = False,
        base: Any = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Train into ``output`` and return the summary, as :meth:`Trainer.train` does. Its ``adaptation``
        says what was done, and which known tasks are routed most alike.
        """
        folder = RunFolder(self.output if output is None else output)
        if os.path.realpath(folder.path) == os.path.realpath(self.run):
            raise ValueError(f"output: expected another folder than the run's, got {folder.path}")
        trainer = self.trainer(folder.path, base, **options)
        summary = trainer.train(resume=resume, overwrite=overwrite)
        nearest: dict[str, float] = {}
        if self.tune in ("router", "all") and trainer.model.adapter.needs_tasks:
            similar = routing_statistics(trainer.model).nearest(self.task)
            nearest = {name: cosine for name, cosine in similar if cosine > 0}
        summary["adaptation"] = {
            **self.to_dict(),
            "shots": len(trainer.train_split),
            "n_valid": len(trainer.valid_split),
            "nearest_tasks": nearest,
        }
        folder.write_summary(summary)
        return summary


def adapt_run(
    run: str | os.PathLike[str],
    task: str,
    data: Any = None,
    tune: Tune = "router",
    shots: int | Literal["all"] = 32,
    *,
    n_valid: int | None = None,
    training: TrainingConfig = DEFAULTS,
    output: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    base: Any = None,
    **options: Any,
) -> dict[str, Any]:
    """Teach a finished run one more task from a few examples; the summary of the new run.

    ``run`` stays as it is; the new run, in ``output`` (``RUN/adapted/TASK``), knows the old tasks and the new
    one and loads as any other. With ``tune`` "router" or "head" the old tasks give the bits they gave before.
    See :func:`polymoe.adapters.extend.add_task` for ``tune``, :func:`polymoe.data.draw_shots` for ``shots``
    and ``n_valid``, :class:`Trainer` for ``options``; ``data`` is anything that holds the task, ``base`` a
    base that is loaded already or the name of one.

    Raises what :func:`load_run` and :meth:`Trainer.train` raise, KeyError for a task that the data do not
    have, ValueError for one that the run knows, for more shots than examples, and for what cannot be tuned.
    """
    settings = FewShot(run, task, data, tune, shots, n_valid, training)
    return settings.train(output, resume=resume, overwrite=overwrite, base=base, **options)


def _absolute(path: str | os.PathLike[str]) -> str:
    return os.path.abspath(path)
