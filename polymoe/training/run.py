"""A finished (or interrupted) run, loaded from its folder to be evaluated and used."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polymoe.adapters import AdaptedModel
from polymoe.functional import batch_invariant
from polymoe.models import load_base
from polymoe.training.folder import RunFolder
from polymoe.training.metrics import Evaluation
from polymoe.training.objectives import Objective, Prediction, load_objective
from polymoe.training.tasks import as_tasks


@dataclass(frozen=True)
class Run:
    """``model`` with the run's adapter, its ``objective``, and the ``recipe`` it was made by. A run that was
    trained batch-invariant evaluates and predicts so."""

    path: Path
    model: Any
    objective: Objective
    recipe: dict[str, Any]

    @property
    def data(self) -> Any:
        """Where its data are: a path, paths by task name, or None."""
        data = self.recipe.get("data")
        return {name: Path(path) for name, path in data.items()} if isinstance(data, Mapping) else data

    @property
    def split_seed(self) -> int:
        """What drew the validation split where the data have none."""
        return int(self.recipe.get("split_seed", self._setting("seed", 0)))

    def evaluate(
        self, data: Any = None, split: str = "test", tasks: Iterable[str] | None = None
    ) -> Evaluation:
        """Metrics by task on a split of ``data`` (whatever :func:`polymoe.data.read_tasks` reads; the run's
        own by default).

        Raises ValueError when there is nothing to evaluate, KeyError for tasks that the run was not trained
        on.
        """
        if data is None:
            data = self.data
            if data is None:
                raise ValueError(
                    f"data: expected a folder or tasks ({self.path} does not say where its own are), got None"
                )
            tasks = self.recipe.get("tasks") if tasks is None else tasks
        found = as_tasks(data, tasks, self.split_seed)
        encoded = self.objective.encode(self.model, found, split)
        with self.as_trained():
            return self.objective.evaluate(self.model, encoded)

    def predict(
        self, texts: Sequence[str], task: str | Sequence[str], candidates: Sequence[str] | None = None
    ) -> list[Prediction]:
        """The output for each text, of one task or of one task each; ``candidates``: what ``match`` chooses
        from.
        """
        with self.as_trained():
            return self.objective.predict(self.model, texts, task, candidates)

    def as_trained(self) -> AbstractContextManager[None]:
        """Batch-invariant inside, if the run was trained so."""
        return batch_invariant(self._setting("batch_invariant") or None)

    def _repr_html_(self) -> str:
        from polymoe.report import inspect  # looks at runs, and is not needed to use them

        return inspect(self)._repr_html_()

    def _setting(self, name: str, default: Any = None) -> Any:
        return self.recipe.get("training", {}).get(name, default)


def load_run(path: str | os.PathLike[str], base: Any = None) -> Run:
    """Load a RUN folder: its adapter, or where it is not finished its best or latest checkpoint.

    ``base``: a loaded base, or the name of one, in place of the recipe's, whose dtype it gets. Raises
    FileNotFoundError where there is no run or no checkpoint yet.
    """
    folder = RunFolder(path)
    if not folder.holds_run():
        raise FileNotFoundError(f"run: expected a folder with a run, got {folder.path}")
    adapter = folder.find_adapter()
    recipe = folder.read_recipe()
    if base is None or isinstance(base, str | os.PathLike):
        base = load_base(recipe["base"] if base is None else base, recipe.get("dtype", "float32"))
    model = AdaptedModel(base)
    model.load_adapter(adapter)
    return Run(folder.path, model, load_objective(model, adapter), recipe)
