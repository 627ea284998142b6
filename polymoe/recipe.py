"""A run in one value: base, data, method, objective and settings, as a YAML file or flags say them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import tyro
import yaml

from polymoe.adapters import AdaptedModel, configure
from polymoe.adapters.experts import EXPERTS
from polymoe.adapters.methods import find_method
from polymoe.adapters.options import AdapterOptions
from polymoe.adapters.routers import ROUTERS
from polymoe.adapters.start import INHERITED
from polymoe.data import read_tasks
from polymoe.models import load_base
from polymoe.training import Trainer, TrainingConfig, TrainingInterrupted
from polymoe.training.folder import RunFolder
from polymoe.training.objectives import Lm, LmOptions, Objective, load_objective
from polymoe.training.plan import Dtype, Plan, make_plan
from polymoe.training.search import load_minimize

FIRST_STAGE = "first-stage"


@dataclass(frozen=True)
class Recipe:
    """What to train, on what, and how."""

    data: str | None = None
    """Folder or file with the tasks."""
    base: str = "minilm"
    """The frozen model: a folder, "minilm", or a name on the hub."""
    dtype: Dtype = "float32"
    """Of the frozen weights: bfloat16 takes half the memory, and is faster on CPUs with avx512_bf16. Adapters
    and all sums are float32."""
    method: str = "mhr"
    """Who shares what: lora, private, poly, mhr, or another that `polymoe methods` lists."""
    init_from: tuple[str, ...] | None = None
    """Runs or adapters whose values to start from, their experts side by side; in place of the first stage of
    a method that comes after another."""
    objective: Literal["classify", "match", "regress", "lm"] = "classify"
    """What is learnt: a head per task, the nearest output text, a number, or to write the output (lm)."""
    tasks: tuple[str, ...] | None = None
    """Tasks to train on; all that the data hold by default."""
    adapter: AdapterOptions = field(default_factory=AdapterOptions)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    lm: LmOptions = field(default_factory=LmOptions)
    first_stage: tyro.conf.Suppress[Mapping[str, Any] | None] = None
    """What the first stage of a method that comes after another does otherwise: ``adapter`` and ``training``,
    as here."""

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Recipe:
        """From the values of a YAML file; TypeError for a setting that does not exist."""
        given = _given(cls, settings, "recipe")
        adapter = _adapter_options(given.pop("adapter", None) or {})
        training = TrainingConfig.from_dict(given.pop("training", None) or {})
        lm = LmOptions(**_given(LmOptions, given.pop("lm", None) or {}, "recipe: lm"))
        for name in given.get("first_stage") or {}:
            if name not in ("adapter", "training"):
                raise TypeError(f"recipe: first_stage: expected adapter and training, got {name!r}")
        return cls(**given, adapter=adapter, training=training, lm=lm)

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str]) -> Recipe:
        """From a file; ValueError naming it where it is no YAML."""
        try:
            settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: expected YAML, got {error}") from error
        if not isinstance(settings, dict):
            raise ValueError(f"{path}: expected settings by name, got {type(settings).__name__}")
        return cls.from_dict(settings)

    def to_dict(self) -> dict[str, Any]:
        """As YAML holds it; :meth:`from_dict` reads it back."""
        settings = asdict(self)
        settings["adapter"] = {k: v for k, v in settings["adapter"].items() if v is not None}
        if self.objective != Lm.name:
            del settings["lm"]
        return _lists(settings)  # type: ignore[no-any-return]

    def train(
        self, output: str | os.PathLike[str], resume: bool = False, overwrite: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        """Train into ``output`` and return the summary; the first stage too, into ``output/first-stage``,
        where the method comes after another and ``init_from`` names no adapters. ``kwargs`` go to the
        trainer.

        Raises as :meth:`polymoe.training.Trainer.train`.
        """
        first = self._first()
        if first is None:
            return self.trainer(output, **kwargs).train(resume=resume, overwrite=overwrite)
        folder, stage = RunFolder(output), RunFolder(Path(output) / FIRST_STAGE)
        self.check_data()
        router = ROUTERS.get(self.adapter.router or find_method(self.method).preset["router"])
        if router is not None and router.searched is not None:
            load_minimize()  # what the second stage cannot do without is missed before the first
        folder.claim(resume, overwrite)
        if not resume:
            folder.clear()
            shutil.rmtree(stage.path, ignore_errors=True)
            folder.write_recipe(self._described())
        if not stage.summary.exists():
            try:
                first.train(stage.path, resume=stage.holds_run(), **kwargs)
            except TrainingInterrupted as stop:
                stop.run = folder.path
                raise
        second = replace(self, init_from=(str(stage.path),), first_stage=None)
        trainer = second.trainer(output, **kwargs)
        trainer.recipe = self._described(trainer.data)
        return trainer.train(resume=True)

    def trainer(self, output: str | os.PathLike[str], outline: bool = False, **kwargs: Any) -> Trainer:
        """Load base and data, adapt, and be ready to train into ``output``. ``kwargs`` go to the trainer.
        ``outline``: the base has no weights, see :func:`polymoe.load_base`.

        ValueError for a method that comes after another, without ``init_from``: see :meth:`train`.
        """
        self.check_data()
        if (after := self._after) is not None and self.init_from is None:
            raise ValueError(
                f"init_from: expected runs or adapters ({self.method} comes after {after}), got None"
            )
        tasks = read_tasks(self.data, self.tasks, seed=self.training.seed, require=("train",))
        model = self.adapted(tasks, outline)
        objective, training = self._objective(model), self.training
        if isinstance(objective, Objective) and not any(p.trainable for _, p in model.adapter_parameters()):
            training = replace(training, epochs=0, max_steps=-1)  # all is there already
        kwargs = {"recipe": self._described(tasks), **kwargs}
        return Trainer(model, tasks, objective, training, output, **kwargs)

    def adapted(self, tasks: Iterable[str], outline: bool = False) -> AdaptedModel:
        """The base with the adapter for these tasks."""
        model = AdaptedModel(load_base(self.base, self.dtype, outline))
        names = self._load_sources(model, check_base=not outline)
        options = {k: v for k, v in asdict(self.adapter).items() if v is not None}
        if not names and "target_modules" not in options:
            options["target_modules"] = EXPERTS[configure(self.method, **options).experts].usual_targets
        model.add_adapter(
            "default", self.method, list(tasks), init_from=names, seed=self.training.seed, **options
        )
        model.set_adapter("default")
        for name in names:
            model.delete_adapter(name)
        return model

    def plan(self) -> Plan:
        """What training takes, in bytes and seconds, and what to set; nothing is loaded or written. Of a
        method that comes after another it is that of the first stage, where the sizes are decided. Raises as
        :meth:`trainer`."""
        if (first := self._first()) is not None:
            return first.plan()
        training = replace(self.training, report_to="none")
        trainer = replace(self, training=training).trainer("run", outline=True, progress=None)

        def other(dtype: Dtype) -> AdaptedModel:
            return replace(self, dtype=dtype).adapted(trainer.data, outline=True)

        return make_plan(trainer, other)

    def check_data(self) -> None:
        """ValueError unless the recipe says where the data are."""
        if self.data is None:
            raise ValueError("data: expected a folder or file with tasks, got None")

    @property
    def _after(self) -> str | None:
        """The method whose adapter this one starts from."""
        return find_method(self.method).after

    def _first(self) -> Recipe | None:
        """The recipe of the first stage, if there is one: sizes and places are decided there."""
        after = self._after
        if after is None or self.init_from is not None:
            if self.first_stage is not None:
                why = f"{self.method} comes after no other" if after is None else "init_from is given"
                raise ValueError(f"first_stage: expected None ({why}), got {self.first_stage!r}")
            return None
        options = {k: v for k, v in asdict(self.adapter).items() if k in INHERITED}
        changes = self.first_stage or {}
        training = {**self.training.to_dict(), **(changes.get("training") or {})}
        return replace(
            self,
            method=after,
            adapter=_adapter_options({**options, **(changes.get("adapter") or {})}),
            training=TrainingConfig.from_dict(training),
            first_stage=None,
        )

    def _load_sources(self, model: AdaptedModel, check_base: bool) -> list[str]:
        """Load the adapters of ``init_from`` into the model; their names there."""
        names = []
        for i, path in enumerate(self.init_from or ()):
            names.append(f"source {i}")
            model.load_adapter(_adapter_folder(path), names[-1], check_base=check_base)
        return names

    def _objective(self, model: AdaptedModel) -> str | Objective:
        """That of the one run to start from, with its heads, where it has the same tasks; else a new one."""
        if self.init_from is not None and len(self.init_from) == 1:
            folder = _adapter_folder(self.init_from[0])
            if (folder / "objective.json").is_file():
                objective = load_objective(model, folder)
                if objective.name == self.objective and objective.task_names == model.tasks.names:
                    return objective
        return Lm(self.lm) if self.objective == Lm.name else self.objective

    def _described(self, tasks: Iterable[str] | None = None) -> dict[str, Any]:
        """As the run's ``recipe.yaml`` has it."""
        recipe = {**self.to_dict(), "data": str(Path(self.data or "").resolve())}
        return recipe if tasks is None else {**recipe, "tasks": list(tasks)}


def _adapter_folder(path: str) -> Path:
    """The folder of the adapter of a run, or a folder that is one."""
    run = RunFolder(path)
    return run.find_adapter() if run.holds_run() else run.path


def _adapter_options(settings: Mapping[str, Any]) -> AdapterOptions:
    return AdapterOptions(**_given(AdapterOptions, settings, "recipe: adapter"))


def _given(kind: type, settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Settings as YAML has them, for a dataclass; TypeError for one that it does not have."""
    known = sorted(f.name for f in fields(kind))
    for name in settings:
        if name not in known:
            raise TypeError(f"{where}: expected settings out of {known}, got {name!r}")
    return {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()}


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _lists(v) for k, v in value.items()}
    return list(value) if isinstance(value, tuple) else value
